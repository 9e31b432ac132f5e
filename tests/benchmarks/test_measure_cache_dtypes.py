"""The script that measures what drafters lose from compressed caches: it compares like with like and can be killed."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from dspark_hf import build_target_cache

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "measure_cache_dtypes.py"
TAPS = [0, 2]


@pytest.fixture
def build(tmp_path, tiny_target_dir, rows):
    """`build(name, dtype)`: a cache of the rows, computed one by one."""
    target = LlamaForCausalLM.from_pretrained(tiny_target_dir, dtype=torch.bfloat16)

    def run(name, dtype="bf16"):
        return build_target_cache(
            target, rows, tmp_path / name, target_layer_ids=TAPS, dtype=dtype, batch_tokens=1, progress=False
        )

    return run


@pytest.fixture
def measure(build, tmp_path, tiny_target_dir, monkeypatch, capsys):
    """`measure(*options)`: the table's rows, of runs of two steps."""
    build("states")
    paths = ["--cache", tmp_path / "states", "--held_out", tmp_path / "states", "--target", tiny_target_dir]
    sizes = ["--steps", "2", "--batch_size", "2", "--num_anchors", "4", "--out", tmp_path / "runs.jsonl"]

    def run(*options):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, paths + sizes), *options])
        with torch.random.fork_rng():
            runpy.run_path(str(SCRIPT), run_name="__main__")
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return {cells[1]: cells[2:-1] for cells in ([cell.strip() for cell in line.split("|")] for line in lines)}

    return run


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int8", "int4"])
def test_rows_are_those_of_a_cache_of_that_dtype(build, dtype):
    stored = runpy.run_path(str(SCRIPT))["StoredAs"](build("states"), dtype)
    cache = build("same", dtype)
    assert len(stored) == len(cache) > 0
    for mine, theirs in zip(stored, cache, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_killed_run_goes_on_to_the_same_figures(measure, tmp_path, tiny_drafter_dir):
    options = ["--drafter", tiny_drafter_dir, "--dtypes", "int4", "--seeds", "0", "1"]
    table, path = measure(*options), tmp_path / "runs.jsonl"
    assert list(table) == ["states", "start", "bf16", "int4"]
    assert table["start"][2] == "0.0%" != table["bf16"][2] and table["bf16"][4] == "" != table["int4"][4]
    runs = path.read_text().splitlines()
    assert [(run["dtype"], run["seed"]) for run in map(json.loads, runs)] == [
        (dtype, seed) for seed in (0, 1) for dtype in ("start", "bf16", "int4")
    ]
    path.write_text("".join(f"{line}\n" for line in runs[:4]))
    assert measure(*options) == table
    assert path.read_text().splitlines() == runs


def test_a_fresh_drafter_is_another_experiment(measure, tmp_path):
    assert measure("--drafter", "none", "--dtypes", "fp8")["fp8"][1] == "0"
    assert measure("--drafter", "none", "--dtypes", "fp8", "--steps", "1")["fp8"][1] == "0"
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 6


def test_states_that_have_lost_precision_are_refused(build, measure, tmp_path):
    build("small", "int8")
    with pytest.raises(ValueError, match=r"small holds states as int8.*Build it with --dtype bf16\."):
        measure("--cache", str(tmp_path / "small"))
