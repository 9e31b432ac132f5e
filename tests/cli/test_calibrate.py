"""`dspark calibrate` and `dspark profile`: what generate() then uses."""

import json
import re

import pytest
from transformers import LlamaForCausalLM

from dspark_hf import AutoDrafter, Calibration, PrefixScheduler, SpeculationConfig
from dspark_hf.generation.lengths.cost_files import circumstances, kept_cost, load_cost


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    texts = ("Count to ten.", "Sing a song.", "Go on.", "Tell me more.")
    path.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in texts))
    return path


def test_a_drafter_is_calibrated(dspark, data, tmp_path, tiny_target_dir, tiny_drafter_dir):
    out = tmp_path / "out"
    options = ["--data", data, "--dtype", "float32", "--max-new-tokens", "24", "--out", out / "one.json"]
    done = dspark("calibrate", tiny_target_dir, tiny_drafter_dir, *options, "--plots", out)
    assert done.code == 0 and "ECE before, after" in done.out and "sampled 4" in done.out, done.err
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "one.json", "reliability-greedy.png", "reliability-sampled.png",
    ]  # fmt: skip
    calibration = Calibration.load(out / "one.json")
    content = json.loads((out / "one.json").read_text())
    # As SGLang reads it.
    assert {"temperatures", "dataset", "num_samples", "ece_before", "ece_after"} <= set(content)
    assert len(calibration.temperatures) == len(calibration.sampled_temperatures) == 4
    assert calibration.made_for["dtype"] == "float32" and calibration.dataset == "data.jsonl"
    # It is for this pair.
    target, drafter = LlamaForCausalLM.from_pretrained(tiny_target_dir), AutoDrafter.from_pretrained(tiny_drafter_dir)
    ids = target.dummy_inputs["input_ids"][:1] % 200
    speculation = SpeculationConfig(policy=PrefixScheduler(calibration=calibration))
    target.generate(ids, assistant_model=drafter, speculation=speculation, max_new_tokens=20, do_sample=False)
    assert drafter.last_stats.rounds > 0


def test_temperatures_that_make_it_worse_are_told(
    dspark, data, tmp_path, monkeypatch, tiny_target_dir, tiny_drafter_dir
):
    def off_by(before, after):
        figures = {"ece": [before, before], "auroc": [None, 0.5], "brier": [0.1, 0.2], "reliability": []}
        return {"before": figures, "after": {**figures, "ece": [after, after]}}

    def run(*models, journal, **options):
        for mode in ("greedy", "sampled"):
            journal.with_name(f"{journal.name}.{mode}").touch()
        figures = {"greedy": off_by(0.1, 0.2), "sampled": off_by(0.2, 0.1)}
        return Calibration([1.0, 2.0], [1.0, 2.0], figures=figures)

    monkeypatch.setattr("dspark_hf.evaluation.lengths.calibration.calibrate", run)
    done = dspark("calibrate", tiny_target_dir, tiny_drafter_dir, "--data", data, "--out", tmp_path / "one.json")
    told = " ".join(done.out.split())
    assert "greedy: with these temperatures survival is further off than without, by 0.200 after 0.100" in told
    assert "sampled: with" not in told and done.code == 0
    # A name without .json is that of a folder, which need not be there.
    done = dspark("calibrate", tiny_target_dir, tiny_drafter_dir, "--data", data, "--out", tmp_path / "new")
    assert done.code == 0 and Calibration.load(tmp_path / "new" / "calibration.json").temperatures == [1.0, 2.0]


def test_one_that_was_stopped_is_said_so(dspark, data, tmp_path, tiny_target_dir, tiny_drafter_dir):
    (tmp_path / "one.json.unfinished.jsonl.greedy").write_text("{}\n")
    options = ["--data", data, "--dtype", "float32", "--out", tmp_path / "one.json"]
    done = dspark("calibrate", tiny_target_dir, tiny_drafter_dir, *options)
    assert done.code == 2 and "what an earlier run left. Go on with --resume" in done.err


def test_a_machine_is_profiled(dspark, tmp_path, monkeypatch, tiny_target_dir, tiny_drafter_dir):
    monkeypatch.setenv("DSPARK_HF_CACHE", str(tmp_path))
    models = ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--dtype", "float32"]
    sizes = ["--context", "16", "--max-tokens", "12", "--repeats", "2"]
    done = dspark("profile", *models, *sizes, "--sglang", tmp_path / "sps.json")
    assert done.code == 0 and "a proposal by rows: 1: " in done.out, done.err
    assert f" and {tmp_path / 'sps.json'}" in done.out
    target, drafter = LlamaForCausalLM.from_pretrained(tiny_target_dir), AutoDrafter.from_pretrained(tiny_drafter_dir)
    cost = kept_cost(circumstances(target, drafter))
    assert {1, 2, 3, 4, 6, 8, 12} <= set(cost.tokens) and cost.contexts == [16] and cost.rows == [1, 2, 3]
    assert sorted(cost.verify_seconds[0]) == cost.verify_seconds[0]
    assert load_cost(tmp_path / "sps.json").tokens == cost.tokens


def test_sizes_that_are_none_are_refused(dspark, tiny_target_dir, tiny_drafter_dir):
    models = ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir]
    assert dspark("profile", *models, "--context", "2").code == 2
    done = dspark("profile", *models, "--context", "999999", "--dtype", "float32")
    assert done.code == 2 and "room for a block within the target's" in " ".join(done.err.split())


def test_policies_are_replayed(dspark, data, tmp_path, monkeypatch, tiny_target_dir, tiny_drafter_dir):
    monkeypatch.setenv("COLUMNS", "80")
    models = ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--dtype", "float32"]
    small = ["--max-new-tokens", "16", "--batch-size", "1", "--batch-size", "4", "--quality", "good", "--quality"]
    done = dspark(
        "bench", "sweep", "--data", data, *models, *small, "useless", "--temperature", "0", "--temperature", "1",
        "--json", tmp_path / "sweep.json", "--plots", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    # Each figure can be read on a terminal of 80 columns.
    assert re.search(r"auto to best +│ \d\.\d{3} +│ \d\.\d{3} ", done.out) and "…" not in done.out
    assert "those of plain steps being 1" in done.out
    results = json.loads((tmp_path / "sweep.json").read_text())["results"]
    names = [f"{kind} drafter, T = {warmth}" for kind in ("good", "useless") for warmth in (0, 1)]
    assert list(results) == [f"{name}, rule of thumb" for name in names]
    for result in results.values():
        assert set(result["policies"]) == {"1", "4"} and result["policies"]["1"]["plain"] == {"speed": 1.0}
        assert len(result["thresholds"]) == 9
        verified = [one["verified"] for one in result["thresholds"].values()]
        # What is verified changes the rounds, so not each step of a tenth takes some away.
        assert verified[0] >= verified[4] >= verified[-1]
    assert len(list(tmp_path.glob("*.png"))) == 4 and not list(tmp_path.glob("[!.]*unfinished*"))


def test_answers_without_a_block_are_told(dspark, data, tiny_target_dir, tiny_drafter_dir):
    models = ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--quality", "good"]
    done = dspark("bench", "sweep", "--data", data, *models, "--max-new-tokens", "1")
    assert done.code == 2 and "no block to replay, since no answer has two tokens" in " ".join(done.err.split())


def test_a_quality_that_is_none_is_refused(dspark, data, tiny_target_dir, tiny_drafter_dir):
    models = ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir]
    done = dspark("bench", "sweep", "--data", data, *models, "--quality", "superb")
    assert done.code == 2 and "quality is one of good, poor, useless, got 'superb'" in done.err
