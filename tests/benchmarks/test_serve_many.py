"""The script that serves many requests, with few of a tiny model."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serve_many.py"


@pytest.mark.parametrize(
    ("load", "name"), [(("--rates", 50), "requests/s"), (("--concurrency", 1, 3), "requests at once")]
)
def test_it_serves_in_all_ways(load, name, tmp_path, tiny_target_dir, tiny_drafter_dir, monkeypatch, capsys):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in ("Count.", "Sing a song.", "Go.")))
    options = ["--data", data, "--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--dtype", "float32",
               "--requests", 4, *load, "--max_new_tokens", 12, "--num_blocks", 32, "--max_batch_tokens", 64,
               "--out", out]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    result = json.loads((out / "result.json").read_text())
    assert result["load"] == name and list(result["loads"]) == [str(one) for one in load[1:]]
    for ways in result["loads"].values():
        assert list(ways) == ["stock", "drafting off", "fixed", "scheduler"]
        # Without drafts no step brings more than a token.
        assert ways["stock"]["tau"] == ways["drafting off"]["tau"] == 1 and ways["stock"]["to_stock"] == [1.0]
        for one in ways.values():
            assert 0 < one["first_p50"] <= one["p50"] <= one["p90"] <= one["p99"] and one["tokens_per_second"] > 0
    assert (out / "table.md").read_text().count("\n") == 2 + 4 * len(result["loads"]) and (
        out / "load.png"
    ).stat().st_size > 1000
    assert f"| {load[1]} | stock |" in capsys.readouterr().out
