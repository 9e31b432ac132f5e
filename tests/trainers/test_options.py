"""What the Hugging Face Trainer offers works with drafters, or is refused."""

import copy
import json
from functools import partial

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from dspark_hf import AutoDrafter, DraftTrainer, DraftTrainingArguments, DSparkModel
from dspark_hf.trainers.rows import encode_rows, load_rows

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
    with pytest.raises(ValueError, match="None of the 1 conversations has an answer of two tokens"):
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


def test_a_row_that_cannot_be_encoded_is_named(tiny_tokenizer, tmp_path):
    odd = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": None}]}
    rows = [*CONVERSATIONS[:2], odd, *CONVERSATIONS[2:]]
    expected = r"cannot be encoded: Expected each message .*got .*'content': None"
    with pytest.raises(ValueError, match=rf"Row 2 \(from 0\) {expected}"):
        encode_rows(rows, tiny_tokenizer, 40)
    with pytest.raises(ValueError, match=rf"Row 2 \(from 0\) of pass 1 {expected}"):
        list(encode_rows(Dataset.from_list(rows).to_iterable_dataset(), tiny_tokenizer, 40))
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in rows))
    with pytest.raises(ValueError, match=f"{file}, line 3: Expected each message"):
        load_rows([str(file)], tiny_tokenizer, 40)
    # What only the template objects to.
    rows[2] = {"messages": [{"role": "assistant", "content": "I begin."}, *CONVERSATIONS[0]["messages"]]}
    file.write_text("".join(json.dumps(record) + "\n" for record in rows))
    with pytest.raises(ValueError, match=f"{file}, conversation 3, cannot be encoded: .*starts with an assistant"):
        load_rows([str(file)], tiny_tokenizer, 40)


def test_data_without_answers_are_refused(tiny_tokenizer):
    with pytest.raises(
        ValueError, match="None of the 8 conversations has an answer of two tokens within max_length=2"
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
