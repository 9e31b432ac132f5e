"""Files that are whole or absent, and what is noted beside them."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from dspark_hf.files import follow_umask, whole_file, write_json
from dspark_hf.provenance import changes, installed_versions


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


def test_weights_are_as_open_as_any_new_file(tmp_path):
    before = os.umask(0o022)
    try:
        save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
        follow_umask(tmp_path)
        with whole_file(tmp_path / "shard.safetensors") as temp:
            save_file({"a": torch.ones(1)}, temp)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"model.safetensors": 0o644, "shard.safetensors": 0o644}


def test_missing_package_has_no_version():
    assert installed_versions("no-such-package", "pytest") == {"no-such-package": None, "pytest": pytest.__version__}


def test_changed_settings_are_told_by_name():
    assert changes({"a": 1, "b": None}, {"a": 1, "c": None}) == ""
    assert changes({"seed": 1, "dtype": "int4"}, {"dtype": "int8", "top_k": 4}) == (
        "dtype: 'int4' before, 'int8' now; seed: 1 before, None now; top_k: None before, 4 now"
    )
