"""Recorded drafts say what generation accepts, and replaying the net on them says what it then does."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from dspark_hf.generation.lengths.cost import RoundCost
from transformers import AutoTokenizer, LlamaForCausalLM

from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.evaluation import encode_prompts, load_prompts
from dspark_hf.generation.lengths.safety import SafetyNet

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
replay = runpy.run_path(str(BENCHMARKS / "replay_safety_net.py"))["replay"]


def run(monkeypatch, name, *options):
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in ("Count.", "Sing a song.", "Go.")))
    return path


@pytest.fixture
def record(data, tmp_path, tiny_target_dir, tiny_drafter_dir, monkeypatch):
    """Records the tiny drafter, and returns what was written."""

    def write(*options):
        out = tmp_path / "record.jsonl"
        models = ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--dtype", "float32"]
        run(monkeypatch, "record_drafts.py", "--data", data, *models, "--max_new_tokens", 40, "--out", out, *options)
        return out, [json.loads(line) for line in out.read_text().splitlines()]

    return write


@pytest.mark.parametrize("has_net", [False, True])
def test_a_replay_is_what_generate_does(record, data, tiny_target_dir, tiny_drafter_dir, has_net):
    _, (head, *answers) = record()
    assert [answer["set"] for answer in answers] == 3 * ["data"] and head["num_slots"] == 4
    target = LlamaForCausalLM.from_pretrained(tiny_target_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_target_dir)
    drafter = DSparkModel.from_pretrained(tiny_drafter_dir).eval()
    net = SafetyNet(has_net)
    for prompt, answer in zip(load_prompts(data), answers, strict=True):
        inputs = encode_prompts([prompt], tokenizer)
        speculation = SpeculationConfig(safety_net=has_net, prompt_lookup=False)
        target.generate(**inputs, assistant_model=drafter, speculation=speculation, max_new_tokens=40, do_sample=False)
        stats = drafter.last_stats
        rounds = replay(answer["lens"], 4, 40, net, RoundCost(torch.device("cpu")))
        assert [len(rounds), [gain for *_, gain in rounds]] == [stats.rounds, stats.accepted_lens]
        assert [num_drafts for _, num_drafts, _ in rounds] == stats.verified_lens
    assert (stats.paused_rounds > 0) == has_net


def test_sampled_drafts_are_recorded(record):
    _, (_, *answers) = record("--temperature", 1, "--random")
    lens = [length for answer in answers for length in answer["lens"]]
    assert set(lens) <= set(range(5)) and 0 < sum(lens) < 0.5 * len(lens)


def test_what_a_net_costs_is_told(record, monkeypatch, capsys):
    path, _ = record()
    capsys.readouterr()
    run(monkeypatch, "replay_safety_net.py", path, "--threads", 1)
    first, second = capsys.readouterr().out.splitlines()
    numbers = r"plain \d+, always \d+, net \d+ \([+-]\d+\.\d\d% lost\), paused \d+ of \d+, accused (None|\d)"
    assert re.fullmatch(f"record, 3 answers, 1 threads, as one life: {numbers}", first)
    assert re.fullmatch(f"record, 3 answers, 1 threads, each anew: {numbers}", second)
