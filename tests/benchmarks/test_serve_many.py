"""The script that serves many requests, with few of a tiny model."""

import json
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serve_many.py"


def test_it_serves_in_all_ways(tmp_path, tiny_target_dir, tiny_drafter_dir, monkeypatch, capsys):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in ("Count.", "Sing a song.", "Go.")))
    options = ["--data", data, "--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--dtype", "float32",
               "--requests", 4, "--rates", 50, "--max_new_tokens", 12, "--num_blocks", 32, "--max_batch_tokens", 64,
               "--out", out]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    result = json.loads((out / "result.json").read_text())
    assert list(result["rates"]) == ["50"]
    for ways in result["rates"].values():
        assert list(ways) == ["stock", "fixed", "scheduler"] and ways["stock"]["tau"] == 1
        for one in ways.values():
            assert 0 < one["first_p50"] <= one["p50"] <= one["p90"] <= one["p99"] and one["tokens_per_second"] > 0
    assert (out / "table.md").read_text().count("\n") == 5 and (out / "load.png").stat().st_size > 1000
    assert "| 50 | stock |" in capsys.readouterr().out
