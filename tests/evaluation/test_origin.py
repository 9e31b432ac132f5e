"""Results that can be traced."""

import json

import torch

from dspark_hf.evaluation import machine, provenance, versions


def test_provenance_tells_how_to_repeat(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/some/bin/dspark", "evaluate", "--task", "a b.jsonl"])
    facts = provenance(torch.device("cpu"))
    assert facts["command"] == "dspark evaluate --task 'a b.jsonl'"
    assert facts["versions"] == versions()
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["machine"] == machine("cpu")
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert facts["machine"]["device_name"]
    assert facts["commit"] is None or len(facts["commit"].removesuffix("-dirty")) == 40
    json.dumps(facts)


def test_a_notebook_is_named_as_far_as_it_is_known(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/some/lib/ipykernel_launcher.py", "-f", "/run/tmp4t.json"])
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert provenance()["command"] == "a notebook"
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/tune.ipynb")
    assert provenance()["command"] == "tune.ipynb"


def test_commit_is_absent_outside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr("dspark_hf.evaluation.origin.__file__", str(tmp_path / "origin.py"))
    assert provenance()["commit"] is None
