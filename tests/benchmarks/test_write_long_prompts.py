"""The script that writes long prompts, of texts that are installed anywhere."""

import json
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "write_long_prompts.py"


def write(out, *options, target):
    sys.argv = [str(SCRIPT), "--target", target, "--out", str(out), *options]
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_prompts_are_of_the_lengths_asked_for(tmp_path, tiny_target_dir, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    rows = write(tmp_path / "a", "--num_prompts", "8", "--lengths", "100", "400", target=tiny_target_dir)
    again = write(tmp_path / "b", "--num_prompts", "4", "--lengths", "100", "400", target=tiny_target_dir)
    assert len(rows) == 8 and rows[:4] == again
    sizes = [len(tiny_tokenizer(row["turns"][0])["input_ids"]) for row in rows]
    # The question comes on top, and a piece of text may have other tokens on its own.
    assert min(sizes) >= 90 and max(sizes) <= 600 and max(sizes) - min(sizes) > 50
    assert not any(row["id"].startswith("dspark_hf") for row in rows)
