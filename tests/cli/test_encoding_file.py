"""Commands with a target whose chats are rendered by a file of its repository, from text to a measured drafter."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))
from encoders import SOURCE, by_hand, without_template, write_encoding  # noqa: E402

from dspark_hf import DSparkForCausalLM  # noqa: E402
from dspark_hf.data.encoding_file import load_tokenizer  # noqa: E402

REFUSED = "encoding/encoding_dsv4.py, which runs only if you allow it"


@pytest.fixture
def target(tmp_path, tiny_target_dir, tiny_tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(tiny_target_dir, tmp_path / "target"))
    for file in folder.glob("chat_template*"):
        file.unlink()
    # The tiny target has as many tokens as the tokenizer had before.
    tokenizer = without_template(tiny_tokenizer, added=["<bos>"])
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == 260
    return write_encoding(folder)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"turns": [f"Question {i}?"]}) + "\n" for i in range(12)))
    return path


def test_from_prompts_to_a_measured_drafter(dspark, target, prompts, tmp_path, tiny_tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    trusted = ["--target", target, "--trust-remote-code"]
    options = ["--max-new-tokens", "6", "--dtype", "float32"]
    text = tmp_path / "text.jsonl"
    outcome = dspark("regenerate", *trusted, *options, "--prompts", prompts, "--out", text, "--thinking",
                     "--reasoning-effort", "max")  # fmt: skip
    assert outcome.code == 0, outcome.err
    record = json.loads(text.read_text().splitlines()[0])
    assert record["thinking"] is True and record["reasoning_effort"] == "max"
    asked = record["messages"][0]["content"]
    tokenizer = without_template(tiny_tokenizer, added=["<bos>"])
    model = AutoModelForCausalLM.from_pretrained(target)
    ids = torch.tensor([by_hand(tokenizer, f"<bos>Think a lot. <user>{asked}<assistant><think>")["input_ids"]])
    out = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True).rstrip("\ufffd") == record["messages"][1]["content"]

    outcome = dspark("cache", *trusted, "--data", text, "--out", tmp_path / "cache", "--dtype", "fp32", "--tap", "1")
    assert outcome.code == 0, outcome.err
    outcome = dspark("train", f"target={target}", f"data=[{text}]", f"cache={tmp_path / 'cache'}", "output_dir=out",
                     "target_layer_ids=[1]", "block_size=3", "markov_rank=4", "num_hidden_layers=1", "max_steps=1",
                     "cache_dtype=fp32", "report_to=none", "num_eval_prompts=0", "--trust-remote-code")  # fmt: skip
    assert outcome.code == 0, outcome.err
    drafter = ["--drafter", tmp_path / "out"]
    outcome = dspark("evaluate", *trusted, *drafter, *options, "--task", prompts, "--limit", "2", "--thinking",
                     "--out", tmp_path / "run")  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result["rows"][1]["identical"]["differences"] == [] and result["rows"][1]["identical"]["num_answers"] >= 2
    assert result["made_with"]["settings"]["thinking"] is True and result["made_with"]["template"] is not None
    answers = [dspark("generate", "Why?", *trusted, *drafter, *options, *more) for more in ([], ["--thinking"])]
    assert [answer.code for answer in answers] == [0, 0] and answers[0].out != answers[1].out


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "demo",
        "chat",
        "evaluate",
        "diagnose",
        "bench",
        "sweep",
        "calibrate",
        "profile",
        "regenerate",
        "synthesize",
        "cache",
        "train",
    ],
)
def test_without_the_users_word_no_command_goes_on(dspark, target, prompts, tmp_path, tiny_drafter_dir, command):
    (target / "model.safetensors").write_bytes(b"never opened")
    named, drafter = ["--target", target], ["--drafter", tiny_drafter_dir]
    outcome = dspark(*{
        "generate": ["generate", "Why?", *named, *drafter],
        "demo": ["demo", *named, *drafter],
        "chat": ["chat", *named, *drafter],
        "sweep": ["bench", "sweep", *named, *drafter, "--data", prompts],
        "calibrate": ["calibrate", target, tiny_drafter_dir, "--data", prompts],
        "profile": ["profile", *named, *drafter],
        "evaluate": ["evaluate", *named, *drafter, "--task", prompts, "--out", tmp_path / "run"],
        "diagnose": ["diagnose", target, tiny_drafter_dir],
        "bench": ["bench", "generate", *named, *drafter, "--data", prompts],
        "regenerate": ["regenerate", *named, "--prompts", prompts, "--out", tmp_path / "out.jsonl"],
        "synthesize": ["regenerate", *named, "--synthesize", "3", "--out", tmp_path / "out.jsonl"],
        "cache": ["cache", *named, "--data", prompts, "--out", tmp_path / "cache"],
        "train": ["train", f"target={target}", f"data=[{prompts}]", "output_dir=out"],
    }[command])  # fmt: skip
    assert outcome.code == 2 and REFUSED in outcome.err and "--trust-remote-code" in outcome.err


def test_measuring_commands_go_on_with_it(dspark, target, prompts, tmp_path, tiny_drafter_dir):
    options = ["--dtype", "float32", "--trust-remote-code"]
    outcome = dspark("calibrate", target, tiny_drafter_dir, "--data", prompts, "--max-new-tokens", "6",
                     "--out", tmp_path / "calibration.json", *options)  # fmt: skip
    assert outcome.code == 0, outcome.err
    named = ["--target", target, "--drafter", tiny_drafter_dir]
    outcome = dspark("profile", *named, "--context", "8", "--max-tokens", "2", "--repeats", "1",
                     "--out", tmp_path / "cost.json", *options)  # fmt: skip
    assert outcome.code == 0, outcome.err
    outcome = dspark("bench", "sweep", *named, "--data", prompts, "--limit", "2", "--max-new-tokens", "6",
                     "--temperature", "0", "--quality", "good", "--batch-size", "1",
                     "--cost", tmp_path / "cost.json", *options)  # fmt: skip
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("given", "told"),
    [("''", "encodes to no tokens"), ("'\\ud800'", "gives half of a surrogate pair"), ("b'x'", "gives bytes instead")],
)
def test_what_is_no_prompt_is_told(dspark, target, prompts, tmp_path, tiny_drafter_dir, given, told):
    write_encoding(target, source=f"def encode_messages(messages, thinking_mode): return {given}")
    trusted = ["--target", target, "--trust-remote-code", "--dtype", "float32"]
    outcome = dspark("regenerate", *trusted, "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    assert outcome.code == 2 and "No conversation was answered" in outcome.err and told in outcome.err
    outcome = dspark("generate", "Why?", *trusted, "--drafter", tiny_drafter_dir)
    assert outcome.code == 2 and told in outcome.err


def test_a_composite_repository_brings_it(dspark, hub, target, tmp_path, tiny_drafter_dir):
    outcome = dspark("push", tiny_drafter_dir, "org/both", "--target", target, "--include-target", "--yes")
    assert outcome.code == 0, outcome.err
    assert "encoding/encoding_dsv4.py" in hub.files("org/both")
    outcome = dspark("generate", "Why?", "--target", "org/both", "--drafter", tiny_drafter_dir)
    assert outcome.code == 2 and REFUSED in outcome.err
    model = DSparkForCausalLM.from_pretrained("org/both")
    tokenizer = load_tokenizer("org/both", trust_remote_code=True)
    model.save_pretrained(tmp_path / "saved", tokenizer=tokenizer)
    assert (tmp_path / "saved" / "encoding" / "encoding_dsv4.py").read_text() == SOURCE


def test_a_model_that_transformers_does_not_know_is_told(dspark, target, tiny_drafter_dir):
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "model_type": "deepseek_v41"}))
    for options in ([], ["--trust-remote-code"]):
        outcome = dspark("generate", "Why?", "--target", target, "--drafter", tiny_drafter_dir, *options)
        assert outcome.code == 2 and "deepseek_v41" in outcome.err


def test_code_of_a_repository_that_was_not_named_is_refused(dspark, target, tiny_drafter_dir):
    config = json.loads((target / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "other/Code--modeling.Model"}
    (target / "config.json").write_text(json.dumps(config))
    outcome = dspark("generate", "Why?", "--target", target, "--drafter", tiny_drafter_dir, "--trust-remote-code")
    assert outcome.code == 2 and "needs code of other/Code" in outcome.err
