"""A cache on the Hub: pushed, pulled, and what is left of an upload that broke off."""

import pytest
import torch
from hub_server import READ_TOKEN
from huggingface_hub import HfApi

from dspark_hf import TargetCache
from dspark_hf.data.cache.records import read_record, write_record


@pytest.fixture
def cache(build, rows):
    return build(rows, dtype="int4")


def test_round_trip(hub, cache, tmp_path):
    cache.select([0]).push_to_hub("org/states")  # a view stands for the whole cache
    pulled = TargetCache.from_hub("org/states")
    assert pulled.folder != cache.folder and len(pulled) == len(cache)
    pulled.verify()
    assert all(torch.equal(one["features"], two["features"]) for one, two in zip(pulled, cache, strict=True))
    files = hub.files("org/states", kind="dataset")
    card = files["README.md"].decode()
    assert "18 rows" in card and 'TargetCache.from_hub("org/states")' in card and str(tmp_path) not in card
    assert not [name for name in files if "lock" in name or name.endswith(".tmp")]


def test_revisions(hub, build, rows, tmp_path):
    build(rows[:5]).push_to_hub("org/states")
    build(rows, tmp_path / "more").push_to_hub("org/states", revision="more", private=True)
    assert len(TargetCache.from_hub("org/states")) == 4
    assert len(TargetCache.from_hub("org/states", revision="more")) == 18


def test_a_damaged_cache_is_not_pushed(hub, cache):
    path = cache.shards[0].data_path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path.name} has"):
        cache.push_to_hub("org/states")
    assert not hub.repos


def test_a_second_push_sends_only_what_is_new(hub, build, rows):
    build(rows[:8]).push_to_hub("org/states")
    hub.requests.clear()
    grown = build(rows)
    grown.push_to_hub("org/states")
    sent = [path for method, path, _ in hub.requests if method == "PUT" and path.startswith("/_lfs/")]
    assert 0 < len(sent) < len(grown.shards)
    assert len(TargetCache.from_hub("org/states")) == 18


def test_a_repository_without_a_cache(hub):
    HfApi().create_repo("org/other", repo_type="dataset")
    with pytest.raises(ValueError, match="is no target cache"):
        TargetCache.from_hub("org/other")


@pytest.fixture
def at_once(monkeypatch):
    """Where the client would wait to try again."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "No valid token was sent: run `hf auth login`"),
        (403, "The token may not write there"),
        (404, "The repository is not there for this token"),
        (409, "Somebody else is changing the repository"),
        (413, "A file, or all of them together, is more than it takes: save smaller shards"),
        (429, "It is asked too often: wait some minutes"),
        (500, "Push again: what was sent is kept"),
    ],
)
def test_a_hub_that_refuses_a_cache_is_told_as_it_is(hub, cache, at_once, status, advice):
    hub.intercept = lambda method, path: status if "/commit/" in path else None
    with pytest.raises(ValueError, match=f"^The Hub refused to store org/states. {advice}.*{status}") as caught:
        cache.push_to_hub("org/states")
    assert "\n" not in str(caught.value)
    hub.intercept = None
    cache.push_to_hub("org/states")
    assert len(TargetCache.from_hub("org/states")) == len(cache)


@pytest.mark.parametrize("part", ["/api/", "/resolve/"])
@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "There is no such repository, or it is private"),
        (403, "The token may not read it: ask for access on its page"),
        (404, "It is not there for this token: check name and revision"),
        (429, "It is asked too often: wait some minutes"),
        (500, "It has a fault: try again later"),
        (503, "It has a fault: try again later"),
    ],
)
def test_a_hub_that_does_not_send_a_cache_is_told_as_it_is(hub, cache, at_once, part, status, advice):
    cache.push_to_hub("org/states")
    hub.intercept = lambda method, path: status if part in path else None
    with pytest.raises(ValueError, match=f"^The Hub refused to send the target cache org/states. {advice}") as caught:
        TargetCache.from_hub("org/states")
    assert caught.type is ValueError and "\n" not in str(caught.value)
    hub.intercept = None
    assert len(TargetCache.from_hub("org/states")) == len(cache)


def test_who_may_not_write_or_read_a_cache(hub, cache, monkeypatch, tmp_path):
    cache.push_to_hub("org/states", private=True)
    hub.log_in(monkeypatch, READ_TOKEN)
    with pytest.raises(ValueError, match="The Hub refused to store org/states. The token may not write there"):
        cache.push_to_hub("org/states")
    hub.log_in(monkeypatch, None)
    with pytest.raises(
        ValueError, match="refused to send the target cache org/states. There is no such repository, or"
    ):
        TargetCache.from_hub("org/states", cache_dir=str(tmp_path / "empty"))


def test_a_hub_that_is_not_there(hub, cache, monkeypatch, at_once):
    hub.stop()
    with pytest.raises(ValueError, match="did not answer, so org/states is not pushed"):
        cache.push_to_hub("org/states")
    with pytest.raises(ValueError, match="Cannot load the target cache org/states: the Hub .* does not answer"):
        TargetCache.from_hub("org/states")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="org/states cannot be pushed while HF_HUB_OFFLINE is set"):
        cache.push_to_hub("org/states")
    with pytest.raises(ValueError, match="org/states is not in the local cache, and HF_HUB_OFFLINE is set"):
        TargetCache.from_hub("org/states")


@pytest.mark.parametrize("text", ["{", "", "[]", "\xff", '{"format": 1}'])
def test_a_broken_file_on_the_hub_names_the_repository(hub, cache, text):
    cache.push_to_hub("org/states")
    HfApi().upload_file(path_or_fileobj=text.encode("latin-1"), path_in_repo="manifest.json", repo_id="org/states",
                        repo_type="dataset")  # fmt: skip
    with pytest.raises(ValueError, match="^org/states on the Hub cannot be used as a target cache.*manifest.json"):
        TargetCache.from_hub("org/states")


def test_a_cache_with_a_secret_is_not_pushed(hub, cache):
    record = read_record(cache.folder / "manifest.json")
    write_record(cache.folder / "manifest.json", record | {"target": "https://me:word@host/x"})
    with pytest.raises(ValueError, match=r"manifest.json \(target, line 2\) holds a URL with a password"):
        TargetCache(cache.folder).push_to_hub("org/states")
    assert not hub.repos


@pytest.mark.parametrize("stage", ["/repos/create", "/objects/batch"])
def test_a_cache_that_changes_while_it_is_sent_is_not_pushed(hub, cache, stage):
    manifest = cache.folder / "manifest.json"

    def change(method, path):
        if stage in path:
            write_record(manifest, read_record(manifest) | {"target": "https://me:word@host/x"})

    hub.intercept = change
    with pytest.raises(ValueError, match="^manifest.json was changed or removed while it was about to be sent"):
        cache.push_to_hub("org/states")
    assert set(hub.files("org/states", kind="dataset")) == {".gitattributes"}


def test_a_cache_goes_in_one_commit_as_it_was_looked_at(hub, build, rows, tmp_path):
    build(rows, tmp_path / "former").push_to_hub("org/states")
    cache, hub.requests[:] = build(rows[:5], tmp_path / "new"), []
    manifest = cache.folder / "manifest.json"
    before = manifest.read_bytes()

    def change(method, path):
        if "/validate-yaml" in path:  # the last thing before the commit
            manifest.write_bytes(b"{}")

    hub.intercept = change
    cache.push_to_hub("org/states")
    files = hub.files("org/states", kind="dataset")
    assert files["manifest.json"] == before and manifest.read_bytes() == b"{}"
    assert set(files) == {path.name for path in cache.folder.iterdir() if path.name != ".lock"} | {
        "README.md", ".gitattributes"
    }  # fmt: skip
    assert len([path for _, path, _ in hub.requests if "/commit/" in path]) == 1


def test_a_card_of_a_cache_that_was_written_by_hand_stays(hub, build, rows, tmp_path):
    build(rows[:5], tmp_path / "one").push_to_hub("org/states")
    build(rows, tmp_path / "two").push_to_hub("org/states")
    card = hub.files("org/states", kind="dataset")["README.md"]
    assert b"18 rows" in card
    words = card.replace(b"18 rows", b"18 rows of mine")
    HfApi().upload_file(path_or_fileobj=words, path_in_repo="README.md", repo_id="org/states", repo_type="dataset")
    build(rows[:5], tmp_path / "one").push_to_hub("org/states")
    assert hub.files("org/states", kind="dataset")["README.md"] == words
