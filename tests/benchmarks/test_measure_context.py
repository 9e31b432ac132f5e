"""The script that measures acceptance by the length of the prompt, on tiny models."""

import json
import re
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "measure_context.py"


def test_it_measures_every_length_and_drafter(tmp_path, tiny_target_dir, tiny_drafter_dir, monkeypatch, capsys):
    options = [
        "--target",
        tiny_target_dir,
        "--drafter",
        f"one={tiny_drafter_dir}",
        "--drafter",
        f"two={tiny_drafter_dir}",
    ]
    sizes = ["--lengths", "160", "256", "--num_prompts", "2", "--max_new_tokens", "8", "--dtype", "float32"]
    out, picture = tmp_path / "rows.json", tmp_path / "context.svg"
    written = ["--json", str(out), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, *sizes, *written])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = json.loads(out.read_text())
    assert [(row["length"], row["drafter"]) for row in rows] == [
        (n, name) for n in (160, 256) for name in ("one", "two")
    ]
    assert all(row["tau"] >= 1 and row["whole"] > 0 for row in rows)
    assert "<svg" in picture.read_text()
    assert len(re.findall(r"^ +(?:160|256)  (?:one|two) ", capsys.readouterr().out, re.MULTILINE)) == 4


def test_tau_alone_takes_no_plain_runs(tiny_target_dir, tiny_drafter_dir, monkeypatch, capsys):
    options = ["--target", tiny_target_dir, "--drafter", f"one={tiny_drafter_dir}", "--dtype", "float32", "--tau_only"]
    sizes = ["--lengths", "160", "--num_prompts", "1", "--max_new_tokens", "8", "--window", "16"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, *sizes])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    head, *rows = capsys.readouterr().out.strip("\n").splitlines()
    assert head.endswith("slot 1") and len(rows) == 2
    assert all(re.fullmatch(r"   160  one(, 16)? +\d\.\d\d +\d\.\d\d", row) for row in rows)


def test_a_prompt_has_the_length_that_is_asked_for(tiny_tokenizer):
    prompt_of = runpy.run_path(str(SCRIPT))["prompt_of"]
    for length in (150, 333):
        ids = prompt_of(tiny_tokenizer, "Rivers end in the sea. ", 7, length)
        assert len(ids) == length and "Here is a text." in tiny_tokenizer.decode(ids)
