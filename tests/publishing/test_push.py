"""Drafters go to a Hub and come back: layout, revisions, tokens, uploads that are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hub_server import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN
from huggingface_hub import HfApi
from safetensors.torch import load_file

from dspark_hf import AutoDrafter
from dspark_hf.publishing import push_folder

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder(tmp_path, tiny_drafter_dir):
    return Path(shutil.copytree(tiny_drafter_dir, tmp_path / "drafter"))


@pytest.fixture
def drafter(tiny_drafter_dir):
    return AutoDrafter.from_pretrained(tiny_drafter_dir)


def change_weights(folder):
    drafter = AutoDrafter.from_pretrained(folder)
    torch.nn.init.normal_(drafter.fc.weight)
    drafter.save_pretrained(folder)


def same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_drafter_comes_back(hub, drafter):
    drafter.push_to_hub("org/drafter", tags=["chat"], commit_message="First")
    assert set(hub.files("org/drafter")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert same_weights(AutoDrafter.from_pretrained("org/drafter"), drafter)
    assert hub.repos["model", "org/drafter"].titles.popitem()[1] == "First"
    assert b"- chat\n" in hub.files("org/drafter")["README.md"]


def test_shards_come_back_and_do_not_stay_behind(hub, drafter):
    drafter.push_to_hub("org/drafter", max_shard_size="20KB")
    assert "model.safetensors.index.json" in hub.files("org/drafter")
    assert same_weights(AutoDrafter.from_pretrained("org/drafter"), drafter)
    drafter.push_to_hub("org/drafter")
    assert [path for path in hub.files("org/drafter") if "safetensors" in path] == ["model.safetensors"]
    assert same_weights(AutoDrafter.from_pretrained("org/drafter"), drafter)


@pytest.mark.parametrize("name", ["dspark_vanilla", "dflash"])
def test_the_layout_is_that_of_released_checkpoints(hub, name):
    AutoDrafter.from_pretrained(GOLDEN / name).push_to_hub("org/drafter")
    ours, released = (
        json.loads(hub.files("org/drafter")["config.json"]),
        json.loads((GOLDEN / name / "config.json").read_text()),
    )
    # What is null, and null by default, need not be there.
    assert {key for key, value in released.items() if value is not None} - set(ours) == set()
    same = set(released) & set(ours) - {"transformers_version"}
    assert {key: ours[key] for key in same} == {key: released[key] for key in same}
    assert ours["sample_from_anchor"] is True
    assert ours["tie_word_embeddings"] is False
    assert ours["architectures"] == ["Qwen3DSparkModel"] and ours["model_type"] == "qwen3"
    path = Path(AutoDrafter.from_pretrained("org/drafter").name_or_path)
    tensors = set(load_file(GOLDEN / name / "model.safetensors")) - {"embed_tokens.weight", "lm_head.weight"}
    assert path == Path("org/drafter")
    assert set(AutoDrafter.from_pretrained("org/drafter").state_dict()) == tensors


def test_revisions_hold_what_was_pushed(hub, folder, drafter):
    push_folder(folder, "org/drafter")
    first = hub.repos["model", "org/drafter"].branches["main"]
    (folder / "LICENSE").write_text("only here")
    change_weights(folder)
    push_folder(folder, "org/drafter", revision="v2")
    assert same_weights(AutoDrafter.from_pretrained("org/drafter"), drafter)
    assert same_weights(AutoDrafter.from_pretrained("org/drafter", revision=first), drafter)
    assert same_weights(AutoDrafter.from_pretrained("org/drafter", revision="v2"), AutoDrafter.from_pretrained(folder))
    assert "LICENSE" in hub.files("org/drafter", "v2") and "LICENSE" not in hub.files("org/drafter")
    with pytest.raises(ValueError, match="v3"):
        AutoDrafter.from_pretrained("org/drafter", revision="v3")


def test_subfolders(hub, folder, drafter, tmp_path):
    (tmp_path / "both" / "small").mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "both" / "small" / "dspark")
    HfApi().create_repo("org/drafters")
    HfApi().upload_folder(repo_id="org/drafters", folder_path=tmp_path / "both")
    assert same_weights(AutoDrafter.from_pretrained("org/drafters", subfolder="small/dspark"), drafter)
    with pytest.raises(ValueError, match=r"no config.json in org/drafters;.*subfolder"):
        AutoDrafter.from_pretrained("org/drafters")


def test_a_private_drafter_needs_a_token(hub, drafter, monkeypatch, tmp_path):
    drafter.push_to_hub("org/secret", private=True)
    assert hub.repos["model", "org/secret"].private
    assert AutoDrafter.from_pretrained("org/secret").config.block_size == 4
    for token in (None, STRANGER_TOKEN):
        hub.log_in(monkeypatch, token)
        with pytest.raises(
            ValueError, match=r"(?s)Cannot reach a drafter at org/secret: .*private repository.* token"
        ):
            AutoDrafter.from_pretrained("org/secret", cache_dir=tmp_path / "empty")
    assert AutoDrafter.from_pretrained("org/secret", token=WRITE_TOKEN, cache_dir=tmp_path / "empty")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "No valid token was sent: run `hf auth login`"),
        ("hf_wrong", "No valid token was sent"),
        (READ_TOKEN, "The token may not write there: use one with write access"),
        (STRANGER_TOKEN, "The token may not write there"),
    ],
)
def test_who_may_not_push_is_told_why(hub, drafter, monkeypatch, token, message):
    hub.log_in(monkeypatch, token)
    with pytest.raises(ValueError, match=f"The Hub refused to store org/drafter. {message}"):
        drafter.push_to_hub("org/drafter")


def test_a_reader_of_an_existing_repository_is_told_why(hub, drafter, monkeypatch):
    drafter.push_to_hub("org/drafter")
    hub.log_in(monkeypatch, READ_TOKEN)
    with pytest.raises(ValueError, match="The Hub refused .*may not write there"):
        drafter.push_to_hub("org/drafter")


def push_in_a_process(hub, folder, tmp_path, **options):
    code = f"from dspark_hf.publishing import push_folder; push_folder({str(folder)!r}, 'org/drafter', **{options!r})"
    environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


@pytest.mark.parametrize(("revision", "stage"), [(None, "/_lfs/"), ("v2", "/commit/")])
def test_a_killed_upload_changes_nothing_and_goes_on(hub, folder, drafter, tmp_path, revision, stage):
    """The first large file has arrived when the process is killed: before the next one, or before the commit."""
    drafter.push_to_hub("org/drafter")  # what is there stays whole
    before = hub.files("org/drafter")
    change_weights(folder)
    AutoDrafter.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    num_shards = len(list(folder.glob("model-*.safetensors")))
    assert num_shards > 1
    first, reached, release = threading.Lock(), threading.Event(), threading.Event()

    def hold(method, path):
        # Several threads send files at once: exactly one may get through.
        if stage in path and not (stage == "/_lfs/" and first.acquire(blocking=False)):
            reached.set()
            release.wait(600)
            return 503  # the request never came through
        return None

    def stored():
        return {path for _, path, status in list(hub.requests) if path.startswith("/_lfs/") and status == 200}

    hub.requests.clear()
    hub.intercept = hold
    process = push_in_a_process(hub, folder, tmp_path, revision=revision)
    try:
        deadline = time.monotonic() + 600
        while not (reached.is_set() and stored()):  # what was let through is not stored at once
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        release.set()
    kept = stored()
    hub.intercept = None
    assert hub.files("org/drafter") == before
    assert same_weights(AutoDrafter.from_pretrained("org/drafter"), drafter)
    if revision is not None:
        with pytest.raises(ValueError):
            AutoDrafter.from_pretrained("org/drafter", revision=revision)
    hub.requests.clear()
    push_folder(folder, "org/drafter", revision=revision)
    assert not kept & stored()  # what had arrived is not sent again
    new = AutoDrafter.from_pretrained("org/drafter", revision=revision or "main", force_download=True)
    assert same_weights(new, AutoDrafter.from_pretrained(folder))


@pytest.mark.parametrize(
    ("status", "message"), [(500, "Push again: what was sent is kept"), (404, "The repository is not there for this")]
)
def test_a_server_that_fails_is_told_as_it_is(hub, folder, status, message):
    hub.intercept = lambda method, path: status if "/commit/" in path else None
    with pytest.raises(ValueError, match=f"The Hub refused .*{message}.*{status}"):
        push_folder(folder, "org/drafter")
    hub.intercept = None
    push_folder(folder, "org/drafter")
    assert AutoDrafter.from_pretrained("org/drafter")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_broken_files_on_the_hub(hub, folder, text):
    (folder / "calibration.json").write_text(json.dumps({"temperatures": [1.0] * 4}))
    push_folder(folder, "org/drafter")
    (folder / "calibration.json").unlink()
    put = {"repo_id": "org/drafter", "path_or_fileobj": text.encode()}
    HfApi().upload_file(path_in_repo="config.json", **put)
    with pytest.raises(ValueError, match="org--drafter.*config.json"):
        AutoDrafter.from_pretrained("org/drafter")
    push_folder(folder, "org/drafter")  # a config is replaced
    assert AutoDrafter.from_pretrained("org/drafter").config.block_size == 4
    HfApi().upload_file(path_in_repo="calibration.json", **put)
    with pytest.raises(
        ValueError, match="in org/drafter on the Hub is damaged: .*calibration.json.*Mend or delete it"
    ):
        push_folder(folder, "org/drafter")
    change_weights(folder)
    push_folder(folder, "org/drafter")  # it goes with the weights that it was of
    assert "calibration.json" not in hub.files("org/drafter")
