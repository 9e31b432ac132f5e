"""Reading a cache: like a data set, and never a byte that was not written."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from dspark_hf import DSparkConfig, TargetCache
from dspark_hf.data.cache import dataset as reading
from dspark_hf.data.collator import DraftCollator


@pytest.fixture
def cache(build, rows):
    return build(rows, dtype="int4", log_norm=True)


def test_it_behaves_like_a_data_set(cache, kept):
    assert len(cache) == len(kept) == 18
    assert cache.lengths == [len(row["input_ids"]) for row in kept]
    assert cache.num_tokens == sum(cache.lengths)
    assert cache[-1]["input_ids"].tolist() == kept[-1]["input_ids"]
    assert [ids.tolist() for ids in cache[2:5]["input_ids"]] == [row["input_ids"] for row in kept[2:5]]
    assert [len(ids) for ids in cache[[4, 0]]["input_ids"]] == [cache.lengths[4], cache.lengths[0]]
    assert cache[5:5] == {}
    assert [len(row["features"]) for row in cache] == cache.lengths
    for index in (18, -19):
        with pytest.raises(IndexError, match=f"There is no row {index} in a cache of 18 rows"):
            cache[index]
    assert "18 rows" in repr(cache) and "int4" in repr(cache)


def test_rows_have_numbers_not_names(cache):
    with pytest.raises(TypeError, match="Expected the number of a row, a slice or a list of numbers, got 'features'"):
        cache["features"]
    with pytest.raises(TypeError, match="got 1.5"):
        cache[1.5]


def test_select_is_a_view(cache):
    view = cache.select([3, 1, -1])
    assert view.lengths == [cache.lengths[3], cache.lengths[1], cache.lengths[-1]]
    assert torch.equal(view.select(range(1, 3))[0]["features"], cache[1]["features"])
    with pytest.raises(IndexError, match="There is no row 18 in a cache of 18 rows"):
        cache.select([18])


def test_it_travels_to_other_processes(cache):
    cache[0]
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy[0]["features"], cache[0]["features"])
    loader = DataLoader(cache, batch_size=4, num_workers=1, collate_fn=DraftCollator(2))
    batches = list(loader)
    assert batches[0]["features"].shape == (4, max(cache.lengths[:4]), 64)
    assert sum(len(batch["input_ids"]) for batch in batches) == 18


def test_few_files_stay_open(build, rows, monkeypatch):
    cache = build(rows, shard_bytes=5_000)
    monkeypatch.setattr(reading, "_OPEN_SHARDS", 2)
    assert len(cache.shards) > 2
    first = [row["input_ids"].tolist() for row in cache]
    assert [row["input_ids"].tolist() for row in cache] == first
    assert len(cache._readers) == 2


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_flipped_byte_is_found_and_named(build, rows):
    cache = build(rows[:4], dtype="int4")
    path = cache.shards[0].data_path
    size = path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    places = {*range(0, header, 7), *range(header, size, size // 60), size - 1}
    for place in sorted(places):
        flip(path, place)
        with pytest.raises(ValueError, match=path.name):
            TargetCache(cache.folder).verify()
        flip(path, place)
    TargetCache(cache.folder).verify()


def test_the_damaged_row_is_named_and_others_are_read(build, rows):
    cache = build(rows[:3], shard_bytes=2**20)
    path = cache.shards[0].data_path
    content = path.read_bytes()
    row = cache[1]["features"].view(torch.uint8).numpy().tobytes()
    flip(path, content.index(row) + 11)
    damaged = TargetCache(cache.folder)
    damaged[0], damaged[2]
    with pytest.raises(ValueError, match=r"is damaged: row 1 of it \(source row 1\).*Delete it and rows-.*\.json"):
        damaged[1]


@pytest.mark.parametrize("num_left", [0, 5, 300, -1])
def test_a_truncated_shard_is_named(cache, num_left):
    path = cache.shards[0].data_path
    content = path.read_bytes()
    path.write_bytes(content[:num_left])
    with pytest.raises(ValueError, match=f"{path.name} has {len(content[:num_left])} bytes instead of {len(content)}"):
        TargetCache(cache.folder)[0]


def test_a_missing_shard_is_named_and_built_again(build, rows):
    cache = build(rows)
    shard = cache.shards[1]
    shard.data_path.unlink()
    with pytest.raises(ValueError, match=f"Cannot read .*{shard.data_path.name}.*Delete it and .*build the cache"):
        TargetCache(cache.folder).verify()
    shard.record_path.unlink()
    build(rows).verify()


@pytest.mark.parametrize("name", ["manifest.json", "channels.safetensors", "rows-*.json"])
def test_flipped_bytes_in_records_are_found(cache, name):
    path = sorted(cache.folder.glob(name))[0]
    size = path.stat().st_size
    for place in range(0, size, max(1, size // 40)):
        before = path.read_bytes()
        flip(path, place)
        # White space between entries has no meaning.
        if before[place : place + 1].strip() and path.read_bytes()[place : place + 1].strip():
            with pytest.raises(ValueError, match=path.name):
                TargetCache(cache.folder)
        path.write_bytes(before)


def test_a_missing_file_is_named(cache):
    (cache.folder / "channels.safetensors").unlink()
    with pytest.raises(ValueError, match="Cannot read .*channels.safetensors"):
        TargetCache(cache.folder)
    with pytest.raises(ValueError, match="is no target cache: it has no manifest.json"):
        TargetCache(cache.folder / "nothing")


def test_a_newer_layout_is_refused(cache):
    from dspark_hf.data.cache.records import read_record, write_record

    path = cache.folder / "manifest.json"
    write_record(path, {**read_record(path), "format": 2})
    with pytest.raises(ValueError, match="has format 2, but this version of dspark_hf reads 1"):
        TargetCache(cache.folder)


def test_overlapping_shards_are_refused(cache):
    from dspark_hf.data.cache.records import read_record, write_record

    path = cache.shards[0].record_path
    record = read_record(path)
    first = {name: record[name][:1] for name in ("sources", "lengths", "checksums")}
    write_record(cache.folder / "rows-000000000-000000001.json", {**record, **first, "end": 1})
    with pytest.raises(ValueError, match="both hold source row 0: two builds wrote here"):
        TargetCache(cache.folder)


def test_only_the_drafter_it_was_made_for(cache, target, tiny_tokenizer):
    def config(**fields):
        return DSparkConfig.from_target(target, target_layer_ids=fields.pop("taps", [0, 2]), **fields)

    cache.check_fits(config(), target, tiny_tokenizer)
    with pytest.raises(ValueError, match=r"made with taps \[0, 2\].* but the drafter reads \[0, 1\]"):
        cache.check_fits(config(taps=[0, 1]))
    torch.manual_seed(5)
    other = type(target)(target.config)
    with pytest.raises(ValueError, match="with other weights than those of"):
        cache.check_fits(config(), other)


def test_another_tokenizer_is_refused(build, target, tiny_tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]
    cache = build([{"messages": messages}], tokenizer=tiny_tokenizer)
    config = DSparkConfig.from_target(target, target_layer_ids=[0, 2])
    # Padding of an earlier call is no part of a tokenizer.
    tiny_tokenizer(["a", "bc"], padding=True)
    cache.check_fits(config, target, tiny_tokenizer)
    other = pickle.loads(pickle.dumps(tiny_tokenizer))
    other.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="made with another tokenizer than"):
        cache.check_fits(config, target, other)
