"""Results that can be traced."""

import json

import pytest
import torch

from dspark_hf.evaluation import machine, provenance, versions, write_json


def test_json_is_whole(tmp_path):
    path = tmp_path / "new" / "result.json"
    write_json(path, {"tau": 2.5})
    write_json(path, {"tau": 3.0})
    assert json.loads(path.read_text()) == {"tau": 3.0}
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"tau": 2.5})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"tau": 3.0})
    assert json.loads(path.read_text()) == {"tau": 2.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_provenance_tells_how_to_repeat(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/some/bin/dspark", "bench", "generate", "--data", "a b.jsonl"])
    facts = provenance(torch.device("cpu"))
    assert facts["command"] == "dspark bench generate --data 'a b.jsonl'"
    assert facts["versions"] == versions()
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["machine"] == machine("cpu")
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert facts["machine"]["device_name"]
    assert facts["commit"] is None or len(facts["commit"].removesuffix("-dirty")) == 40
    json.dumps(facts)


def test_missing_package_has_no_version(monkeypatch):
    monkeypatch.setattr("dspark_hf.evaluation.report._PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] is None


def test_commit_is_absent_outside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr("dspark_hf.evaluation.report.__file__", str(tmp_path / "report.py"))
    assert provenance()["commit"] is None
