"""Training on data without a length: what is read, in which order, and going on in the middle of it."""

import json
from itertools import islice

import datasets
import pytest
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from dspark_hf.data.chat import encode_conversation
from dspark_hf.data.collator import has_anchors
from dspark_hf.trainers.streams import StreamedRows, stream_files


def conversation(index):
    answer = "abcdefgh"[: index % 9]
    return {"messages": [{"role": "user", "content": f"q{index}"}, {"role": "assistant", "content": answer}]}


def make_stream(rows):
    def read():
        yield from rows

    return datasets.IterableDataset.from_generator(read)


def test_conversations_are_encoded_as_they_come(tiny_tokenizer):
    read = []

    class Source:
        def __iter__(self):
            for index in range(100):
                read.append(index)
                yield conversation(index)

    rows = StreamedRows(Source(), tiny_tokenizer, 20)
    taken = list(islice(rows, 3))
    expected = [encode_conversation(tiny_tokenizer, conversation(index)["messages"], 20) for index in range(6)]
    expected = [row for row in expected if has_anchors(row["loss_mask"])][:3]
    assert [{"input_ids": row["input_ids"], "loss_mask": row["loss_mask"]} for row in taken] == expected
    assert read == list(range(len(read))) and len(read) < 7


def test_passes_follow_each_other_in_another_order(tiny_tokenizer):
    source = make_stream([conversation(index) for index in range(1, 9)]).shuffle(3, buffer_size=100)
    rows = list(islice(StreamedRows(source, tiny_tokenizer, 40, repeats=True), 16))
    passes = [[row["input_ids"] for row in rows[start : start + 8]] for start in (0, 8)]
    assert passes[0] != passes[1] and sorted(passes[0]) == sorted(passes[1])
    assert [row["stream_epoch"] for row in rows] == [0] * 8 + [1] * 8
    assert len(list(StreamedRows(source, tiny_tokenizer, 40))) == 8


def test_each_pass_has_anchors_of_its_own(make_trainer, rows, tmp_path):
    trainer = make_trainer(tmp_path, make_stream(rows[:4]), num_anchors=3)
    batches = list(islice(trainer.get_train_dataloader(), 2))
    assert batches[0]["input_ids"].equal(batches[1]["input_ids"])
    assert not batches[0]["anchors"].equal(batches[1]["anchors"])


def test_resume_is_bit_for_bit_in_a_later_pass(make_trainer, rows, tmp_path, losses):
    stream = make_stream(rows[:10])
    whole = make_trainer(tmp_path / "whole", stream, max_steps=6)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4  # of ten rows, four a step: in the second pass

    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    make_trainer(tmp_path / "part", stream, callbacks=[Stop()], **options).train()
    resumed = make_trainer(tmp_path / "part", stream, **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(resumed.model.state_dict()[name]), name


def test_held_out_rows_may_be_a_stream(make_trainer, rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, eval_rows={"some": make_stream(rows[:6])}, num_eval_prompts=2,
                           eval_max_new_tokens=4)  # fmt: skip
    whole = make_trainer(tmp_path, rows, eval_rows={"some": rows[:6]}, num_eval_prompts=2, eval_max_new_tokens=4)
    streamed, whole = trainer.evaluate(), whole.evaluate()
    for name in ("eval_some_loss", "eval_some_tau", "eval_some_expected_tau"):
        assert streamed[name] == pytest.approx(whole[name], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": -1}, "whose length is not known: set max_steps"),
        ({"dataloader_num_workers": 2}, "read by one worker in order, got dataloader_num_workers=2"),
    ],
)
def test_what_a_stream_needs(make_trainer, rows, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, make_stream(rows), **arguments)


def test_streams_that_end(tiny_tokenizer):
    once = StreamedRows((conversation(index) for index in range(3)), tiny_tokenizer, 40, repeats=True)
    with pytest.raises(ValueError, match=r"gave no row .* max_length=40 in its pass 2.*made anew for each"):
        list(DataLoader(once, batch_size=None))


def test_files_are_read_line_by_line(tmp_path):
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for file, start in zip(files, (0, 5), strict=True):
        file.write_text("".join(json.dumps(conversation(start + index)) + "\n" for index in range(5)))
    held_out, stream = stream_files([str(file) for file in files], 2, seed=1)
    first = [row["messages"][0]["content"] for row in stream]
    stream.set_epoch(1)
    second = [row["messages"][0]["content"] for row in stream]
    assert [row["messages"][0]["content"] for row in held_out] == ["q0", "q1"]
    assert sorted(first) == sorted(second) == [f"q{index}" for index in range(2, 10)] and first != second
    with pytest.raises(ValueError, match="hold 10 conversations, and held_out=10 of them.*lower held_out"):
        stream_files([str(file) for file in files], 10, seed=1)
    with pytest.raises(ValueError, match="Cannot read conversations from '.*absent.jsonl'"):
        stream_files([str(files[0]), str(tmp_path / "absent.jsonl")], 2, seed=1)
