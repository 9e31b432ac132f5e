"""The script that measures the worst case, on tiny models."""

import json
import re
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "measure_useless_drafter.py"


def test_it_runs_all_ways(tmp_path, tiny_target_dir, tiny_drafter_dir, monkeypatch, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in ("Count.", "Sing a song.", "Go.")))
    options = ["--data", data, "--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--dtype", "float32"]
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), *map(str, options), "--limit", "3", "--batch_size", "2", "--max_new_tokens", "40"]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    assert len(re.findall(r"prompts from [02]: auto \d+\.\d+, all drafts \d+\.\d+\n", out)) == 2
    assert re.search(r"\nauto: median \d+\.\d+, least \d+\.\d+ times as fast as plain\nall drafts: median", out)
