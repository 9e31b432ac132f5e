"""What the Hugging Face Trainer offers works with drafters, or is refused."""

import copy
import json
import re
from functools import partial

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, TrainingArguments

from dspark_hf import AutoDrafter, DraftTrainer, DraftTrainingArguments, DSparkModel
from dspark_hf.trainers.rows import encode_rows, load_rows
from dspark_hf.trainers.streams import stream_files

CONVERSATIONS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}, I think."}]}
    for n in range(8)
]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect on a drafter"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 has no effect on a drafter"),
        ({"fp16": True, "use_cpu": True}, "fp16=True needs an accelerator. Use bf16=True on a CPU"),
    ],
)
def test_arguments_without_effect_are_refused(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        DraftTrainingArguments(str(tmp_path), **option)


@pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics", "model_init"])
def test_options_without_effect_are_refused(make_trainer, tmp_path, rows, name):
    trainer = make_trainer(tmp_path, rows)
    with pytest.raises(ValueError, match=f"{name} has no effect: a drafter's loss and figures are computed without"):
        DraftTrainer(trainer.model, trainer.features.target, trainer.args, train_dataset=rows, **{name: print})


@pytest.mark.parametrize("kind", ["columns that nobody reads", "streamed"])
def test_data_sets_train_like_lists(make_trainer, tmp_path, rows, losses, kind):
    options = {"max_steps": 2, "train_sampling_strategy": "sequential"}
    expected = make_trainer(tmp_path, rows, **options)
    expected.train()
    dataset = Dataset.from_list([{**row, "text": "more"} for row in rows])
    dataset = dataset.to_iterable_dataset() if kind == "streamed" else dataset
    trainer = make_trainer(tmp_path, dataset, remove_unused_columns=kind != "streamed", **options)
    trainer.train()
    assert losses(trainer) == losses(expected)


def test_streamed_conversations_are_encoded_as_they_come(tiny_tokenizer):
    odd = [*CONVERSATIONS, {"messages": [{"role": "user", "content": "nothing to learn"}]}]
    streamed = encode_rows(Dataset.from_list(odd).to_iterable_dataset(), tiny_tokenizer, 40)
    assert list(streamed) == encode_rows(odd, tiny_tokenizer, 40)
    assert len(list(streamed)) == len(CONVERSATIONS)


@pytest.mark.parametrize("answer", ["", "Y"])
def test_answers_of_less_than_two_tokens_are_left_out(tiny_tokenizer, answer, tmp_path):
    """In every way that conversations come; one cut off loses its end-of-turn token."""
    odd = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], "complete": False}
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("}}\n", "}}<eos>")
    rows = encode_rows(CONVERSATIONS, tiny_tokenizer, 40)
    assert encode_rows([odd, *CONVERSATIONS], tiny_tokenizer, 40) == rows
    stream = Dataset.from_list([odd, *CONVERSATIONS]).to_iterable_dataset()
    assert list(encode_rows(stream, tiny_tokenizer, 40)) == rows
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in [odd, *CONVERSATIONS]))
    assert load_rows([str(file)], tiny_tokenizer, 40) == rows
    with pytest.raises(ValueError, match="None of the 1 conversations in Dataset has an answer of two tokens"):
        encode_rows([odd], tiny_tokenizer, 40)


# Special tokens (begin, end, padding) of target and tokenizer, and what the trained drafter's config then says.
SPECIAL_IDS = {
    "qwen3": ((151643, 151645, None), (None, 151645, 151643), {"bos": 151643, "eos": 151645, "pad": 151643}),
    "llama3": ((128000, [128001, 128008, 128009], None), (128000, 128009, None),
               {"bos": 128000, "eos": [128001, 128008, 128009]}),
    "gemma3": ((2, [1, 106], 0), (2, 1, 0), {"bos": 2, "eos": [1, 106], "pad": 0}),
    "another end": ((2, [1, 106], 0), (2, 107, 0), {"bos": 2, "eos": [107, 1, 106], "pad": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL_IDS)
def test_tokenizers_may_name_other_special_tokens(name, rows, tmp_path):
    of_target, of_tokenizer, expected = SPECIAL_IDS[name]
    names = ("bos", "eos", "pad")
    ids = {f"{token}_token_id": value for token, value in zip(names, of_target, strict=True)}
    config = LlamaConfig(vocab_size=151936, hidden_size=8, intermediate_size=8, num_hidden_layers=4,
                         num_attention_heads=2, num_key_value_heads=1, **ids)  # fmt: skip
    target = AutoModelForCausalLM.from_config(config)
    tokens = {f"<{token}>": value for token, value in zip(names, of_tokenizer, strict=True) if value is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 5, **tokens}, "<unk>")),
        **{f"{token[1:-1]}_token": token for token in tokens},
    )
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, block_size=2, markov_rank=2, num_anchors=2)
    args = DraftTrainingArguments(str(tmp_path), report_to="none", num_eval_prompts=0, disable_tqdm=True, max_steps=1)
    trainer = DraftTrainer(drafter, target, args, train_dataset=rows[:2], processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    for saved in (json.loads((tmp_path / "config.json").read_text()), AutoDrafter.from_pretrained(tmp_path).config):
        read = saved.get if isinstance(saved, dict) else partial(getattr, saved)
        assert {token: read(f"{token}_token_id") for token in expected} == expected
    # The target's own say where it ends.
    assert target.config.eos_token_id == ids["eos_token_id"]


def write(path, rows):
    path.write_text("".join(json.dumps(record) + "\n" for record in rows))
    return str(path)


ODD = {
    "no text": {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": None}]},
    # What only the template objects to.
    "begins": {"messages": [{"role": "assistant", "content": "I begin."}, *CONVERSATIONS[0]["messages"]]},
}
REASONS = {"no text": "Expected each message .*got .*'content': None", "begins": "starts with an assistant"}


@pytest.mark.parametrize("kind", ODD)
def test_a_row_that_cannot_be_encoded_is_named(tiny_tokenizer, tmp_path, kind, caplog):
    """Counted in one line, or an error; in every way that conversations come."""
    rows = [*CONVERSATIONS[:2], ODD[kind], *CONVERSATIONS[2:]]
    file = write(tmp_path / "text.jsonl", rows)
    ways = {
        r"Row 2 \(from 0\)": partial(encode_rows, rows),
        r"Row 2 \(from 0\) of pass 1": partial(encode_rows, Dataset.from_list(rows).to_iterable_dataset()),
        f"{file}, line 3": partial(load_rows, [file]),
    }
    for place, encode in ways.items():
        caplog.clear()
        assert list(encode(tiny_tokenizer, 40)) == encode_rows(CONVERSATIONS, tiny_tokenizer, 40)
        (told,) = (record.getMessage() for record in caplog.records)
        assert re.search(f"1 of 9 conversations are left out: 1 cannot be used .the first: {place}: ", told)
        with pytest.raises(ValueError, match=f"{place}: .*{REASONS[kind]}"):
            list(encode(tiny_tokenizer, 40, strict=True))


def test_streamed_files_name_what_cannot_be_read_or_encoded(tiny_tokenizer, tmp_path, caplog):
    file = write(tmp_path / "text.jsonl", [*CONVERSATIONS[:5], ODD["no text"], ODD["begins"], *CONVERSATIONS[5:]])
    held_out, stream = stream_files([file], 1, seed=1)
    assert len(held_out) == 1 and len(list(encode_rows(stream, tiny_tokenizer, 40))) == 7
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "line 6: Expected each message" in told and "line 7: The conversation starts" in told
    with pytest.raises(ValueError, match="line 6: Expected each message"):
        list(encode_rows(stream_files([file], 1, seed=1, strict=True)[1], tiny_tokenizer, 40))


def test_what_is_left_out_is_told_by_reason(tiny_tokenizer, caplog):
    question = CONVERSATIONS[0]["messages"][0]
    odd = [{"messages": [question]}, {"prompt": "q" * 50, "completion": "abc"}]
    assert len(encode_rows([*CONVERSATIONS, *odd], tiny_tokenizer, 40)) == 8
    (told,) = (record.getMessage() for record in caplog.records)
    assert "2 of 10 conversations are left out: 1 have no answer of two tokens; 1 have an answer only beyond" in told


def test_data_without_answers_are_refused(tiny_tokenizer):
    with pytest.raises(
        ValueError, match="None of the 8 conversations .* within max_length=2: 8 have an answer only beyond max_length"
    ):
        encode_rows(CONVERSATIONS, tiny_tokenizer, 2)


def test_conversations_can_be_evaluated_later(tiny_target_dir, tiny_tokenizer, tmp_path):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    drafter = DSparkModel.from_target(target, target_layer_ids=[0, 2], num_hidden_layers=1, markov_rank=4)
    args = DraftTrainingArguments(str(tmp_path), report_to="none", num_eval_prompts=0, disable_tqdm=True)
    trainer = DraftTrainer(drafter, target, args, eval_dataset=CONVERSATIONS, processing_class=tiny_tokenizer)
    expected = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(CONVERSATIONS)["eval_loss"] == expected
    assert trainer.predict(CONVERSATIONS).metrics["test_loss"] == expected


def test_parts_in_the_wrong_places_are_named(target, rows, tmp_path):
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, block_size=4, markov_rank=4)
    args = DraftTrainingArguments(str(tmp_path), report_to="none")
    with pytest.raises(ValueError, match="first argument of DraftTrainer is the drafter, got LlamaFor.*swap them"):
        DraftTrainer(target, drafter, args, train_dataset=rows)
    with pytest.raises(ValueError, match="second argument of DraftTrainer is the target, a loaded model, got str"):
        DraftTrainer(drafter, "org/Model", args, train_dataset=rows)
    with pytest.raises(ValueError, match="args must be DraftTrainingArguments, .* got TrainingArguments: give it"):
        DraftTrainer(drafter, target, TrainingArguments(str(tmp_path), report_to="none"), train_dataset=rows)


def test_an_absent_tracker_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("dspark_hf.trainers.arguments.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="report_to='wandb' needs a package that is not installed: pip install wandb"):
        DraftTrainingArguments(str(tmp_path), report_to=["tensorboard", "wandb"])
