"""The program for a first hour with a GPU, dry: every way runs, and what fails is written down."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_check


def run(tmp_path, *parts):
    out = tmp_path / "found.json"
    gpu_check.main(["--out", str(out), "--dry", "--parts", *parts])
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_way_runs_on_a_synthetic_pair(tmp_path):
    found = run(tmp_path, "tests", "synthetic", "long")
    assert found["dry"] and found["tests"] == "not in a dry run"
    records = found["synthetic"]
    assert [record.get("error") for record in records] == [None] * len(records)
    assert all(record["same"] for record in records)
    static = [record for record in records if record["way"] == "ours, static"]
    assert {record["batch_size"] for record in static} == {1, 2}
    assert all(record["round_kind"] == "static" and record["tau"] > 1.5 for record in static)
    assert {record["way"] for record in found["long"]} == {"plain, dynamic", "ours, ragged", "ours, static"}
    assert all("error" not in record and record["same"] for record in found["long"])


def test_an_error_is_written_down(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_check, "synthetic", fail)
    assert "no such kernel" in run(tmp_path, "synthetic")["synthetic"]["error"]


def test_it_wants_a_gpu(tmp_path):
    if gpu_check.torch.cuda.is_available():
        pytest.skip("There is one here.")
    with pytest.raises(ValueError, match="no CUDA device here. Pass --dry"):
        gpu_check.main(["--out", str(tmp_path / "found.json")])


@pytest.mark.slow
def test_the_embedded_pair(tmp_path):
    found = run(tmp_path, "embedded", "profile")
    assert [record.get("error") for record in found["embedded"]] == [None] * len(found["embedded"])
    assert "transformers assisted, static" in {record["way"] for record in found["embedded"]}
    assert found["profile"]["kernels"]
