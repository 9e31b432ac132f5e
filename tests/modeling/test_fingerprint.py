"""Targets are told apart by name and weights."""

from dspark_hf.modeling.fingerprint import public_name


def test_places_on_this_machine_are_no_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert public_name("org/Model") == "org/Model"
    assert public_name(str(tmp_path / "runs" / "first")) == public_name("runs/first") == "first"
    # It was loaded from there, and has been removed since.
    assert public_name("/home/somebody/models/Model-A") == "Model-A"
    assert public_name("") is None
