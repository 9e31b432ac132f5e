"""The script that measures policies by the clock, on tiny models, and how its ways take turns."""

import json
import re
import runpy
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "measure_scheduler.py"
sys.path.append(str(BENCHMARKS))

from turns import Turns  # noqa: E402


def test_each_goes_a_step_at_a_time_by_a_clock_of_its_own():
    turns, order, clock = Turns(), [], time.perf_counter

    def way(name, num_steps, seconds):
        began = time.perf_counter()
        for _ in range(num_steps):
            order.append(name)
            time.sleep(seconds)
            turns.step()
        return time.perf_counter() - began

    results = turns.run({"short": lambda: way("short", 2, 0.01), "long": lambda: way("long", 4, 0.05)})
    assert order == ["short", "long", "short", "long", "long", "long"]
    # A clock that went on for those that wait would give both about 0.2.
    assert 0.02 <= results["short"] < 0.1 and 0.2 <= results["long"] < 0.4
    assert time.perf_counter is clock
    turns.step()


def test_what_is_raised_ends_all():
    turns, clock = Turns(), time.perf_counter

    def fail():
        turns.step()
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        turns.run({"one": lambda: [turns.step() for _ in range(3)], "two": fail})
    assert time.perf_counter is clock
    assert turns.run({"again": lambda: 3}) == {"again": 3}


def test_every_point_has_a_ratio(tmp_path, tiny_target_dir, tiny_drafter_dir, monkeypatch, capsys):
    prompts, figures = tmp_path / "prompts.jsonl", tmp_path / "figures.jsonl"
    prompts.write_text("".join(json.dumps({"turns": [f"Say {number}."]}) + "\n" for number in range(4)))
    models = ["--target", str(tiny_target_dir), "--drafter", str(tiny_drafter_dir), "--dtype", "float32"]
    sizes = ["--data", str(prompts), "--batch_sizes", "1", "2", "--max_new_tokens", "12"]
    ways = ["--quality", "good", "useless", "--policies", "auto", "fixed", "--first_calls", "--json", str(figures)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *models, *sizes, *ways])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    points = [json.loads(line) for line in figures.read_text().splitlines()]
    assert len(points) == len(re.findall(r" rows, (?:auto|fixed): \d\.\d{3} \(", capsys.readouterr().out)) == 8
    assert [len(point["seconds"]) for point in points] == [4] * 4 + [2] * 4
    for point in points:
        plain, other = map(sum, zip(*point["seconds"], strict=True))
        assert point["ratio"] == pytest.approx(plain / other) and min(plain, other) > 0
    assert len({point["seconds"][0][1] for point in points}) == 8
