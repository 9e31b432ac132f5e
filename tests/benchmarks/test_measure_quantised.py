"""The script that measures quantised targets, on a tiny one that is not."""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "measure_quantised.py"


def test_it_compares_with_plain_generate(tiny_target_dir, tiny_drafter_dir, monkeypatch, capsys):
    models = ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir]
    options = ["--forms", "none", "--num_prompts", "2", "--max_new_tokens", "8"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *models, *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "equal to plain: 2 of 2" in capsys.readouterr().out
