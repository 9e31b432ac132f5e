"""The script that measures what the scheduler decides by the clock, on tiny models."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "measure_scheduler.py"


@pytest.mark.parametrize("extra", [[], ["--first_calls", "--temperature", "1"]])
def test_it_runs_all_ways(extra, tmp_path, tiny_target_dir, tiny_drafter_dir, monkeypatch, capsys):
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in ("Count.", "Sing a song.", "Go.", "No.")))
    options = ["--data", data, data, "--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--dtype", "float32"]
    options += ["--limit", 2, "--batch_sizes", 1, 2, "--max_new_tokens", 20, "--quality", "good", "useless"]
    options += ["--policies", "auto", "fixed", "--json", out, *extra]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    points = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(point["batch_size"], point["quality"], point["policy"]) for point in points] == [
        (size, quality, policy) for size in (1, 2) for quality in ("good", "useless") for policy in ("auto", "fixed")
    ]
    for point in points:
        plain, drafted = map(sum, zip(*point["seconds"], strict=True))
        assert len(point["seconds"]) == 4 // point["batch_size"] and point["ratio"] == pytest.approx(plain / drafted)
        assert point["interval"][0] <= point["ratio"] <= point["interval"][1]
    printed = re.findall(
        r"float32, T = [01], (\w+), (\d) rows, (\w+): [\d.]+ \([\d.]+ to [\d.]+\), \d batches", capsys.readouterr().out
    )
    assert len(printed) == 8
