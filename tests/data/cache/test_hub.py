"""A cache on the Hub: pushed, pulled, and what is left of an upload that broke off."""

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from dspark_hf import TargetCache


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
    with pytest.raises(RepositoryNotFoundError):
        TargetCache.from_hub("org/states")


def test_a_second_push_sends_only_what_is_new(hub, build, rows):
    build(rows[:8]).push_to_hub("org/states")
    hub.requests.clear()
    grown = build(rows)
    grown.push_to_hub("org/states")
    sent = [path for method, path, _ in hub.requests if method == "PUT" and path.startswith("/_lfs/")]
    assert 0 < len(sent) < len(grown.shards)
    assert len(TargetCache.from_hub("org/states")) == 18


def test_a_repository_without_a_cache(hub):
    from huggingface_hub import HfApi

    HfApi().create_repo("org/other", repo_type="dataset")
    with pytest.raises(ValueError, match="is no target cache"):
        TargetCache.from_hub("org/other")
