"""`dspark train`: a recipe and what differs from it, in one line."""

import json
import re

import pytest
from transformers.utils import logging


@pytest.fixture
def recipe(tmp_path, tiny_target_dir, monkeypatch):
    """A recipe file with its data, in the working folder."""
    monkeypatch.chdir(tmp_path)
    data, path = tmp_path / "text.jsonl", tmp_path / "recipe.yaml"
    conversation = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "abcdefgh"}]}
    data.write_text("\n".join([json.dumps(conversation)] * 6))
    path.write_text(
        f"target: {tiny_target_dir}\ndata: [{data}]\nmax_length: 64\n"
        "drafter: {num_hidden_layers: 1, block_size: 4, markov_rank: 4}\n"
        "training: {output_dir: out, max_steps: 1, report_to: none, disable_tqdm: true,"
        " eval_max_new_tokens: 4}\npaper: Table 0\npublished: {GSM8K: 1.5}\n"
    )
    return path


def test_a_drafter_is_trained(dspark, recipe, tmp_path, caplog):
    from dspark_hf import AutoDrafter

    type(logging.get_logger("dspark_hf.modeling.drafter")).warning_once.cache_clear()
    outcome = dspark("train", "--config", recipe, "block_size=3", "training.save_strategy=no")
    assert outcome.code == 0, outcome.err
    assert "SGLang will not serve this drafter: it has no LlamaDSparkModel." in caplog.text
    assert "tau" in outcome.out and "Table 0" in outcome.out and "GSM8K 1.5" in outcome.out
    assert AutoDrafter.from_pretrained(tmp_path / "out").config.block_size == 3


def test_what_is_trained_can_be_published(dspark, recipe, tmp_path):
    out = tmp_path / "out"
    outcome = dspark("train", "--config", recipe, "save_strategy=no")
    assert outcome.code == 0, outcome.err
    record = json.loads((out / "training.json").read_text())
    assert record["data"] == ["text.jsonl"] and record["steps"] == 1 and record["arguments"]["max_steps"] == 1
    outcome = dspark("push", out, "me/drafter", "--base-model", "org/Model", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert outcome.out.split()[:4] == ["README.md", "config.json", "model.safetensors", "training.json"]
    # What the last evaluation found is in the record and in the card.
    figures = json.loads((out / "eval_results.json").read_text())
    assert record["held_out"]["tau"] == figures["eval_tau"] >= 1
    text = (out / "README.md").read_text()
    assert (
        "text.jsonl" in text
        and f"| {figures['eval_tau']:.3f} |" in text.split("on conversations that it did not see")[1]
    )


def test_a_cache_of_another_dtype_is_trained_from_by_naming_it(dspark, recipe, tmp_path, tiny_target_dir):
    data = ["--data", "text.jsonl", "--max-length", "64", "--tap", "0", "--tap", "2"]
    options = ["--target", tiny_target_dir, "--target-dtype", "bfloat16", "--out", "cache"]
    assert dspark("cache", *data, *options).code == 0
    train = ["train", "--config", recipe, "save_strategy=no", "cache=cache", "target_layer_ids=[0, 2]"]
    outcome = dspark(*train)
    assert outcome.code != 0 and "target_dtype (--target-dtype): 'bfloat16' before, 'float32' now" in outcome.err
    outcome = dspark(*train, "target_dtype=bfloat16")
    assert outcome.code == 0, outcome.err


def test_another_dtype_of_the_target_is_told_when_a_run_goes_on(dspark, recipe, caplog):
    train = ["train", "--config", recipe, "save_strategy=steps", "save_steps=1"]
    assert dspark(*train).code == 0
    outcome = dspark(*train, "max_steps=2", "target_dtype=bfloat16", "--resume")
    assert outcome.code == 0, outcome.err
    assert "target_dtype: 'auto' before, 'bfloat16' now" in caplog.text


def test_an_estimate_needs_no_work(dspark, recipe, tmp_path):
    outcome = dspark("train", "--config", recipe, "--estimate", "estimate.tokens=1e6")
    assert outcome.code == 0, outcome.err
    # Six conversations of "u:hi\na:abcdefgh\n" in bytes: what is there is counted.
    assert "text │ 96 tokens" in outcome.out and re.search(r"cache in bf16 │ 0\.0 GB, \d+ bytes a token", outcome.out)
    parts = ["memory of a process", "of it drafter", "of it loss", "text", "a cache in bf16", "a cache in int4"]
    assert [outcome.out.index(part) for part in parts] == sorted(outcome.out.index(part) for part in parts)
    outcome = dspark("train", "--config", recipe, "--estimate", "estimate.tokens=1e6", "data=null")
    assert "text │ 1,000,000 tokens" in outcome.out and re.search(r"bf16 │ 0\.[1-9] GB", outcome.out)
    outcome = dspark("train", "--config", recipe, "--estimate", "data=null", "block_size=3", "draft_vocab_size=100")
    assert "not known: give data, or estimate.tokens" in outcome.out
    assert "vLLM will not serve this drafter: it has no LlamaDSparkModel; it needs the output head's" in outcome.out
    assert "family=qwen3 makes a drafter of those they have." in outcome.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_step=3"], "Unknown key 'max_step'. Did you mean 'training.max_steps'?"),
        (["lora.rank=4"], "Unknown key 'lora.rank'. Did you mean 'lora.r'?"),
        (["lr=1e-3"], "Unknown key 'lr'. Did you mean 'training.learning_rate'?"),
        (["bf16=maybe"], "A training argument of the recipe cannot be used"),
        (["start_from=/no/such/drafter", "drafter={}"], "/no/such/drafter"),
        (["data=[/no/file.jsonl]"], "There is no file /no/file.jsonl (data of the recipe)"),
    ],
)
def test_bad_input_is_one_line(dspark, recipe, arguments, message):
    outcome = dspark("train", "--config", recipe, *arguments)
    assert outcome.code == 2
    assert message in outcome.err.split("error: ")[1]


def test_an_absent_drafter_is_told_before_the_target_is_loaded(dspark, recipe, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    outcome = dspark("train", "--config", recipe, "start_from=/no/such/drafter", "drafter={}")
    assert outcome.code == 2 and "There is no folder /no/such/drafter" in outcome.err
