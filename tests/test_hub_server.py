"""The Hub that the tests use: the real client finds it a Hub."""

import os
import subprocess
import sys
import urllib.request

import datasets
import pytest
from hub_server import READ_TOKEN, STRANGER_TOKEN
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM


@pytest.fixture
def folder(tmp_path):
    for name, content in (("a.txt", "small"), ("sub/b.safetensors", "large"), ("sub/deep/c.txt", "")):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_text(content)
    return tmp_path / "files"


def test_files_go_up_and_come_down(hub, folder, tmp_path):
    api = HfApi()
    api.create_repo("org/model")
    api.upload_folder(repo_id="org/model", folder_path=folder)
    assert hub.files("org/model")["sub/b.safetensors"] == b"large"
    assert any(path.startswith("/_lfs/") for _, path, _ in hub.requests)
    copy = snapshot_download("org/model", local_dir=tmp_path / "copy")
    assert open(f"{copy}/sub/b.safetensors").read() == "large"
    paths = [entry.path for entry in api.list_repo_tree("org/model", recursive=True)]
    assert paths == [".gitattributes", "a.txt", "sub", "sub/b.safetensors", "sub/deep", "sub/deep/c.txt"]
    assert [entry.path for entry in api.list_repo_tree("org/model", "sub")] == ["sub/b.safetensors", "sub/deep"]
    hub.requests.clear()
    api.upload_folder(repo_id="org/model", folder_path=folder, path_in_repo="again", delete_patterns="*.txt")
    assert not any(path.startswith("/_lfs/") for _, path, _ in hub.requests)


def test_revisions(hub, folder):
    api = HfApi()
    api.create_repo("org/model")
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="x", repo_id="org/model").oid
    api.create_branch("org/model", branch="v2")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="x", repo_id="org/model", revision="v2")
    api.create_tag("org/model", tag="t2", revision="v2")
    found = {
        name: open(hf_hub_download("org/model", "x", revision=name)).read() for name in ("main", first, "v2", "t2")
    }
    assert found == {"main": "1", first: "1", "v2": "2", "t2": "2"}
    refs = api.list_repo_refs("org/model")
    assert ({ref.name for ref in refs.branches}, refs.tags[0].name) == ({"main", "v2"}, "t2")
    assert len(api.list_repo_commits("org/model")) == 2 and len(api.list_repo_commits("org/model", revision="v2")) == 3
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/model", "x", revision="v3")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/model", "y")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("org/model", branch="v2")


def test_who_may_do_what(hub, monkeypatch):
    HfApi().create_repo("org/secret", private=True)
    HfApi().create_repo("org/open")
    assert HfApi().whoami()["name"] == "tester"
    assert HfApi().repo_info("org/secret").private
    for token in (None, STRANGER_TOKEN):
        hub.log_in(monkeypatch, token)
        assert HfApi().repo_info("org/open").id == "org/open"
        with pytest.raises(RepositoryNotFoundError):
            HfApi().repo_info("org/secret")
    for token in (READ_TOKEN, STRANGER_TOKEN):
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi(token=token).upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="org/open")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").repo_info("org/open")


def test_a_part_of_a_file(hub):
    HfApi().create_repo("org/model")
    HfApi().upload_file(path_or_fileobj=b"0123456789", path_in_repo="x.bin", repo_id="org/model")
    request = urllib.request.Request(f"{hub.url}/org/model/resolve/main/x.bin", headers={"Range": "bytes=3-5"})
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (206, "bytes 3-5/10")
        assert answer.read() == b"345"


def test_requests_can_be_refused(hub):
    HfApi().create_repo("org/model")
    hub.intercept = lambda method, path: 500 if "/commit/" in path else None
    with pytest.raises(HfHubHTTPError, match="500"):
        HfApi().upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="org/model")
    assert set(hub.files("org/model")) == {".gitattributes"}


def test_a_datasets_round_trip(hub):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).push_to_hub("org/data", private=True)
    assert datasets.load_dataset("org/data", split="train")["text"][:] == ["a", "b"]
    assert hub.repos["dataset", "org/data"].private


def test_a_transformers_round_trip(hub, tiny_target_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    model.push_to_hub("org/tiny", revision="v1")
    assert AutoModelForCausalLM.from_pretrained("org/tiny", revision="v1").config.vocab_size == model.config.vocab_size
    with pytest.raises((OSError, ValueError)):  # main is empty
        AutoModelForCausalLM.from_pretrained("org/tiny")


def test_another_process(hub, tmp_path):
    HfApi().create_repo("org/model")
    code = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'], HfApi().repo_exists('org/model'))"
    environment = os.environ | hub.environment(tmp_path / "home")
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ["tester", "True"], result.stderr


def test_without_the_fixture_there_is_no_network():
    with pytest.raises((OSError, LocalEntryNotFoundError)):
        hf_hub_download("org/model", "x")
