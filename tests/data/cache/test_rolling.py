"""The rolling cache: same states as the target gives, fewer runs, never over its budget."""

import time

import pytest
import torch

from dspark_hf.data.cache import RollingFeatures
from dspark_hf.data.cache.rolling import parse_size


def pad(rows):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("row-*"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 0.02), ("int4", 0.4)])
def test_states_are_those_of_the_target(source, rows, tmp_path, dtype, tolerance):
    rolling = RollingFeatures(source, tmp_path, 10**7, dtype=dtype)
    ids, mask = pad(rows[:6])
    first, second = rolling(ids, mask), rolling(ids, mask)
    for one, two, true in zip(first, second, source(ids, mask), strict=True):
        assert torch.equal(one, two)
        real = mask.bool()
        error = (one[real].float() - true[real]).square().mean().sqrt() / true[real].square().mean().sqrt()
        assert error < tolerance
        assert one[~real].eq(0).all()
    assert (rolling.num_misses, rolling.num_hits) == (6, 6)


def test_a_later_run_finds_them(source, rows, tmp_path):
    ids, mask = pad(rows[:6])
    first = RollingFeatures(source, tmp_path, 10**7, dtype="int8")(ids, mask)
    later = RollingFeatures(source, tmp_path, 10**7, dtype="int8")
    assert all(torch.equal(one, two) for one, two in zip(first, later(ids, mask), strict=True))
    assert (later.num_misses, later.num_hits) == (0, 6)
    assert later.used == size_of(tmp_path)


def test_the_budget_is_kept_and_what_is_kept_stays(source, rows, tmp_path):
    budget = 40_000
    rolling = RollingFeatures(source, tmp_path, budget)
    hits = []
    for epoch in range(3):
        rolling.begin_epoch()
        before = rolling.num_hits
        for index in torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch)).tolist():
            rolling(*pad(rows[index : index + 1]))
            assert size_of(tmp_path) == rolling.used <= budget
        hits.append(rolling.num_hits - before)
    # A cache that forgot the oldest row first would find almost none again.
    assert hits[0] == 0 and 4 < hits[1] <= hits[2] < len(rows)


def test_rows_that_are_not_used_make_room(source, rows, tmp_path):
    rolling = RollingFeatures(source, tmp_path, 20_000)
    old, new = rows[:10], rows[10:]
    for part, epochs in ((old, 1), (new, 3)):
        for _ in range(epochs):
            time.sleep(0.01)
            rolling.begin_epoch()
            for row in part:
                rolling(*pad([row]))
    before = rolling.num_hits
    for row in new:
        rolling(*pad([row]))
    assert rolling.num_hits - before >= 3
    assert rolling.used == size_of(tmp_path) <= 20_000


def test_a_damaged_row_is_computed_again(source, rows, tmp_path):
    rolling = RollingFeatures(source, tmp_path, 10**7)
    ids, mask = pad(rows[:2])
    expected = rolling(ids, mask)
    path = sorted(tmp_path.glob("row-*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    with pytest.warns(UserWarning, match=f"computed again: .*{path.name} is damaged"):
        found = rolling(ids, mask)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two, rtol=0.02, atol=0.02)
    assert rolling.used == size_of(tmp_path)
    rolling(ids, mask)


def test_training_goes_on_where_the_disk_is_full(source, rows, no_space, tmp_path):
    rolling, ids = (
        RollingFeatures(source, tmp_path / "kept", 10**6, dtype="fp32"),
        [torch.tensor(r["input_ids"]) for r in rows],
    )
    with (
        no_space(),
        pytest.warns(UserWarning, match="No more rows are kept, the target runs for all others: Cannot write"),
    ):
        features, _ = rolling(ids[2][None])
    assert torch.equal(features, source(ids[2][None])[0])
    rolling(ids[0][None])
    assert rolling.used == 0 and not list((tmp_path / "kept").glob("row-*"))


def test_the_same_row_twice_in_a_batch(source, rows, tmp_path):
    rolling = RollingFeatures(source, tmp_path, 10**7)
    features, _ = rolling(*pad([rows[0], rows[1], rows[0]]))
    assert torch.equal(features[0], features[2]) and rolling.num_misses == 2


def test_bad_settings(source, tmp_path):
    with pytest.raises(ValueError, match="budget must be at least 1 byte, got 0"):
        RollingFeatures(source, tmp_path, 0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        RollingFeatures(source, tmp_path, 10, dtype="int2")
    RollingFeatures(source, tmp_path, 10)
    with pytest.raises(ValueError, match=r"dtype \(--dtype\): 'bf16' before, 'int8' now"):
        RollingFeatures(source, tmp_path, 10, dtype="int8")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("50GB", 50 * 10**9), ("512 MiB", 2**29), ("1.5k", 1500), ("700", 700), ("3TiB", 3 * 2**40), ("8 b", 8)],
)
def test_sizes(text, num_bytes):
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "50 GBs", "-3GB", "5 iB", "a lot"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="Expected a size such as 50GB or 512MiB"):
        parse_size(text)
