"""Building a cache: what is in it, and that nothing that was computed is lost."""

import copy
import os
import shutil
import signal
import time
import traceback

import pytest
import torch
from accelerate import PartialState
from filelock import FileLock
from torch.distributed import TCPStore

from dspark_hf import TargetCache
from dspark_hf.data.cache import build as building
from dspark_hf.data.cache.build import _share
from dspark_hf.data.cache.processes import process_state


def contents(cache):
    return [{name: tensor.clone() for name, tensor in row.items()} for row in cache]


def assert_same(first, second, **tolerance):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], **tolerance)


def test_rows_are_what_the_target_says(build, source, kept):
    cache = build(kept, dtype="fp32", log_norm=True)
    assert len(cache) == len(kept) and len(cache.shards) > 3
    for row, given in zip(cache, kept, strict=True):
        ids = torch.tensor([given["input_ids"]])
        features, last = source(ids)
        assert row["input_ids"].tolist() == given["input_ids"] and row["loss_mask"].tolist() == given["loss_mask"]
        torch.testing.assert_close(row["features"], features[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(row["last_hidden_states"], last[0], rtol=1e-4, atol=1e-4)
        norms = torch.logsumexp(source.target.lm_head(last[0]), -1)
        norms[[not supervised for supervised in given["loss_mask"][1:]] + [True]] = 0  # nothing is learned there
        torch.testing.assert_close(row["log_norm"], norms, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "fp8", "int8", "int4"])
def test_bytes_per_token_are_as_promised(build, rows, dtype):
    cache = build(rows, dtype=dtype, shard_bytes=2**20, log_norm=True)
    payload = sum(
        tensor.numel() * tensor.itemsize
        for number, row in cache._places
        for tensor in cache._reader(number)[row].values()
    )
    assert payload == cache.num_tokens * cache._codec.bytes_per_token
    assert cache.bytes_per_token > cache._codec.bytes_per_token


def test_log_norm_belongs_to_the_stored_states(build, source, rows):
    row = build(rows, dtype="int4", log_norm=True)[0]
    logits = source.target.lm_head(row["last_hidden_states"].float())
    learned = row["loss_mask"].roll(-1)
    learned[-1] = False
    torch.testing.assert_close(row["log_norm"], torch.logsumexp(logits, -1) * learned, rtol=1e-4, atol=1e-4)


def test_rows_without_anything_to_learn_are_left_out(build, rows, kept):
    assert [row["input_ids"].tolist() for row in build(rows)] == [row["input_ids"] for row in kept]


def test_conversations_are_encoded(build, tiny_tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]
    cache = build([{"messages": messages}], tokenizer=tiny_tokenizer, max_length=8)
    assert tiny_tokenizer.decode(cache[0]["input_ids"]) == "u:a\na:bcd\n"[:8]
    assert cache.manifest.tokenizer and cache.manifest.chat_template


def test_new_rows_are_appended(build, rows, monkeypatch):
    first = build(rows[:8])
    names = {path.name: path.stat().st_mtime_ns for path in first.folder.glob("rows-*")}
    whole = build(rows)
    assert {name: (whole.folder / name).stat().st_mtime_ns for name in names} == names
    monkeypatch.setattr(building, "write_shard", None)  # nothing is left to write
    assert_same(contents(build(rows)), contents(whole))


def test_killed_at_any_moment_it_goes_on(build, rows, tmp_path):
    # Shards of the same rows: batches of other shapes round otherwise, and codes of 4 bits show it.
    options = {"dtype": "int4", "shard_bytes": 2_000}
    expected = contents(build(rows, tmp_path / "whole", **options))
    found = set()
    for attempt in range(6):
        child = in_child(build, rows, **options)
        wait_for_new_record(tmp_path / "cache", found, child)
        time.sleep(0.004 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        records = {path.name for path in (tmp_path / "cache").glob("rows-*.json")}
        assert records >= found
        found = records
    assert_same(contents(build(rows, **options)), expected)
    assert not list((tmp_path / "cache").glob("*.tmp"))


def in_child(function, *args, **options):
    """Id of a process that calls `function` and ends, with code 0 unless it raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*args, **options)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def wait_for_new_record(folder, found, child):
    deadline = time.monotonic() + 60
    while not {path.name for path in folder.glob("rows-*.json")} - found and time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)


def test_what_a_killed_writer_leaves_is_removed(build, rows):
    cache = build(rows[:8])
    shard = cache.shards[-1]
    shard.record_path.unlink()
    (cache.folder / "rows-000000099-000000100.safetensors.7.tmp").write_text("part")
    assert [path.name for path in build(rows[:8]).folder.glob("*.tmp")] == []
    assert shard.record_path.exists()


def test_a_gap_is_told_and_filled(build, rows):
    cache = build(rows)
    gone = cache.shards[1]
    gone.record_path.unlink()
    with pytest.warns(UserWarning, match=f"lacks source rows {gone.start} to {gone.end - 1}"):
        assert len(TargetCache(cache.folder)) == len(cache) - len(gone.lengths)
    assert len(build(rows)) == len(cache)


@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 3), (2, 3)])
def test_shares_are_even_and_cover_everything(index, count):
    ranges = [(2, 5), (9, 10), (20, 31)]
    every = [row for start, end in ranges for row in range(start, end)]
    shares = [[row for start, end in _share(ranges, i, count) for row in range(start, end)] for i in range(count)]
    assert sum(shares, []) == every
    assert abs(len(shares[index]) - len(every) / count) < 1


def test_two_processes_write_what_one_does(build, rows, tmp_path):
    # A store and what torchrun tells its processes: a port that is free now may be taken when they come.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}

    def run(rank):
        os.environ.update(place | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"})
        PartialState._reset_state()
        cache = build(rows)
        (tmp_path / f"seen-by-{rank}-{len(cache)}-{process_state().num_processes}").touch()

    children = [in_child(run, rank) for rank in ("0", "1")]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("seen*")) == ["seen-by-0-18-2", "seen-by-1-18-2"]
    two = TargetCache(tmp_path / "cache")
    assert_same(contents(two), contents(build(rows, tmp_path / "one")), rtol=0.02, atol=0.02)
    # One process computed the first half of the rows, the other the second.
    assert 10 in [shard.end for shard in two.shards]


def test_another_cache_is_not_continued(build, rows):
    cache = build(rows[:4])
    with pytest.raises(ValueError, match=r"dtype .--dtype.: 'bf16' before, 'int8' now.*Use the former settings"):
        build(rows[:4], dtype="int8")
    with pytest.raises(ValueError, match="built from other rows: source rows 0 to"):
        build(rows[1:5])
    with pytest.raises(ValueError, match=r"differ from those given \(2 rows\)"):
        build(rows[:2])
    (cache.folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds shards but no manifest.json"):
        build(rows[:4])


def test_a_fine_tuned_target_is_another_one(build, rows, target):
    build(rows[:2])
    weight = target.model.layers[1].mlp.down_proj.weight.data
    before = weight.clone()
    weight.mul_(1.5)
    try:
        with pytest.raises(ValueError, match="with other weights of that name"):
            build(rows[:2])
    finally:
        weight.copy_(before)


def test_two_builds_do_not_write_at_once(build, rows, tmp_path):
    (tmp_path / "cache").mkdir()
    with FileLock(tmp_path / "cache" / ".lock"):
        # A lock is per object here, as it is per process in two processes.
        with pytest.raises(ValueError, match="Another build is writing to"):
            build(rows)


def test_states_that_are_not_finite_are_refused(build, rows, target):
    weight = target.model.layers[1].mlp.down_proj.weight.data
    before = weight.clone()
    weight.fill_(float("inf"))
    try:
        with pytest.raises(ValueError, match="not finite in one of these rows"):
            build(rows)
    finally:
        weight.copy_(before)


def test_a_disk_that_fills_up_is_told_and_the_build_goes_on(build, rows, no_space, tmp_path):
    with no_space(), pytest.raises(OSError, match=r"Cannot write .*rows-.*safetensors: .* is kept"):
        build(rows)
    assert not list((tmp_path / "cache").glob("*.tmp")) and len(build(rows)) == 18


def test_a_full_disk_is_told_before_any_work(build, rows, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(ValueError, match=r"needs about 0.0 GB more, but .* has 0.0 GB free.*int4 is the smallest"):
        build(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "dtype must be one of fp32, .*, int4, got 'int3'"),
        ({"shard_bytes": 0}, "shard_bytes must be at least 1, got 0"),
        ({"batch_tokens": -1}, "batch_tokens must be at least 1, got -1"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"target_layer_ids": [3]}, r"ascending ids from 0 to 2 for a target of 4 layers .*, got \[3\]"),
        ({"target_layer_ids": []}, r"ascending ids from 0 to 2 for a target of 4 layers .*, got \[\]"),
        ({"rows": []}, "rows must be a list or a dataset with a length"),
        ({"rows": iter([])}, "rows must be a list or a dataset with a length"),
        ({"rows": [{"text": "a"}]}, r"Row 0 \(from 0\) needs 'messages', or 'input_ids' and 'loss_mask'"),
        ({"rows": [{"messages": [{"role": "user", "content": "a"}]}]}, "give their tokenizer"),
    ],
)
def test_bad_settings_are_refused_before_any_work(build, rows, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"rows": rows, **options})
    assert not list(tmp_path.glob("cache/rows-*"))


def test_a_row_that_cannot_be_encoded_is_named(build, tiny_tokenizer, caplog):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]}
    odd = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}
    with pytest.raises(ValueError, match=r"Row 1 \(from 0\): .*'content': None"):
        build([good, odd], tokenizer=tiny_tokenizer, strict=True)
    cache = build([odd, good], tokenizer=tiny_tokenizer)
    assert len(cache) == 1 and "1 of 2 conversations are left out: 1 cannot be used (the first: Row 0" in caplog.text


def test_nothing_to_learn_at_all(build):
    with pytest.raises(ValueError, match="No row has a token that the target wrote"):
        build([{"input_ids": [1, 2], "loss_mask": [False, False]}], dtype="int4")


@pytest.mark.parametrize("size", [50, 10**7], ids=["too short", "too long"])
def test_a_shard_of_another_size_is_told_before_it_is_counted(build, rows, size):
    shard = build(rows).shards[1]
    os.truncate(shard.data_path, size)
    message = f"{shard.data_path.name} has {size} bytes instead of {shard.num_bytes}. Delete it and .*build the cache"
    with pytest.raises(ValueError, match=message):
        build(rows)
    shard.data_path.unlink()
    with pytest.raises(ValueError, match=f"Cannot read .*{shard.data_path.name}"):
        build(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_norm": True}, r"log_norm \(--log-norm\): False before, True now"),
        ({"target_layer_ids": [0, 1]}, r"target_layer_ids \(--tap\): \[0, 2\] before, \[0, 1\] now"),
        ({"max_length": 7}, r"max_length \(--max-length\): 4096 before, 7 now"),
    ],
)
def test_a_cache_of_other_settings_names_them_with_their_options(build, rows, options, message):
    build(rows)
    with pytest.raises(ValueError, match=f"holds another cache .{message}"):
        build(rows, **options)


def test_a_cache_of_another_target_names_both(build, rows, target, tiny_tokenizer, tmp_path):
    build(rows, tokenizer=tiny_tokenizer)
    other = copy.deepcopy(target)
    other.lm_head.weight.data.mul_(2)
    options = {"target_layer_ids": [0, 2], "progress": False, "tokenizer": tiny_tokenizer}
    with pytest.raises(ValueError, match=r"was made from (\S+) \(\d layers.*with other weights of that name"):
        building.build_target_cache(other, rows, tmp_path / "cache", **options)
    other.name_or_path = "org/Other"
    with pytest.raises(ValueError, match=r"was made from .* not from this target \(org/Other\)"):
        building.build_target_cache(other, rows, tmp_path / "cache", **options)
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.chat_template = "other"
    with pytest.raises(ValueError, match="was made with another chat template. Use the former, or another folder"):
        build(rows, tokenizer=tiny_tokenizer)
