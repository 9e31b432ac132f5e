"""Caches of others, checksums right: what no drafter can learn from is found by verify() and when it is read."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dspark_hf import TargetCache, build_target_cache
from dspark_hf.data.cache import RollingFeatures
from dspark_hf.data.cache.manifest import file_checksum
from dspark_hf.data.cache.records import read_record, write_record
from dspark_hf.data.cache.shards import _checksum, _header_checksum
from dspark_hf.data.features import TargetFeatures
from dspark_hf.ops.finite import is_finite

TAPS = [1, 2]
NAN, INF = float("nan"), float("inf")


def forge(folder: Path, change) -> None:
    """Change a shard's tensors and make its record fit: nothing but the content tells."""
    shard = next(folder.glob("rows-*.safetensors"))
    record = read_record(shard.with_suffix(".json"))
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    tensors = change(tensors) or tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, shard)
    bounds = [sum(record["lengths"][:row]) for row in range(len(record["lengths"]) + 1)]
    record["checksums"] = [
        _checksum({name: tensor[first:last] for name, tensor in tensors.items()})
        for first, last in zip(bounds, bounds[1:], strict=False)
    ]
    with open(shard, "rb") as file:
        record |= {"num_bytes": shard.stat().st_size, "header_checksum": _header_checksum(file)}
    write_record(shard.with_suffix(".json"), record)


def setting(name, place, value):
    def change(tensors):
        tensors[name][place] = value

    return change


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def as_dtype(name, dtype):
    return lambda tensors: tensors | {name: tensors[name].to(dtype)}


# Row 3 of a shard of 16 rows with 20 tokens each, where one row is hit.
CONTENTS = {
    "a NaN state": (setting("features.values", (65, 3), NAN), "row 3 of it .source row 3.: features has values that"),
    "an Inf state": (setting("last_hidden_states.values", (65, 0), INF), "row 3 .*last_hidden_states has values"),
    "both infinities": (
        setting("features.values", (65, slice(0, 2)), torch.tensor([INF, -INF])),
        "row 3 .*not finite",
    ),
    "an id beyond": (setting("input_ids", 65, 10**6), "row 3 .*input_ids run from 3 to 1000000, .* has 64 tokens"),
    "a negative id": (setting("input_ids", 65, -1), "row 3 .*input_ids run from -1 to"),
    "a float mask": (as_dtype("loss_mask", torch.float32), "row 0 .*input_ids must be int32 and loss_mask bool"),
    "float ids": (as_dtype("input_ids", torch.float32), "row 0 .*input_ids must be int32"),
    "no mask": (without("loss_mask"), "row 0 .*cannot be decoded"),
    "no states": (without("features.values"), "row 0 .*cannot be decoded"),
    "narrow states": (
        lambda tensors: tensors | {"features.values": tensors["features.values"][:, :5]},
        r"features has shape \(20, 5\) instead of \(20, 32\)",
    ),
    "flat states": (
        lambda tensors: tensors | {"features.values": tensors["features.values"][:, 0]},
        r"features has shape \(20,\)",
    ),
    "other lengths": (
        lambda tensors: tensors | {"input_ids": tensors["input_ids"][:20]},
        r"input_ids has shape \[20\], but .*json speaks of 320 tokens",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_are_checked_where_they_are_read(edited, name):
    change, message = CONTENTS[name]
    folder = edited("cache", "manifest.json", {})
    forge(folder, change)
    cache = TargetCache(folder)
    for read in (cache.verify, lambda: list(cache), lambda: cache[:]):
        with pytest.raises(ValueError, match=f"{folder}/rows-000000000-000000016.safetensors.*{message}"):
            read()
    if "row 3" in message:
        assert len(cache[2]["input_ids"]) == 20, "other rows can be read"


MANIFESTS = [
    {"dtype": ["fp32"]}, {"dtype": "fp33"}, {"target_layer_ids": None}, {"target_layer_ids": "ab"},
    {"target_layer_ids": [2, 1]}, {"target_layer_ids": [1, 9]}, {"target_layer_ids": [True, 2]}, {"hidden_size": "x"},
    {"hidden_size": -1}, {"hidden_size": 16.0}, {"vocab_size": None}, {"num_target_layers": True},
    {"max_length": "long"}, {"log_norm": 1}, {"log_norm": True}, {"target": None}, {"target": ["x"]},
    {"tokenizer": 7}, {"chat_template": {}}, {"fingerprint": 1.5}, {"revision": []}, {"target_dtype": None},
    {"channels": "x"}, {"format": 2}, {"format": "1"}, {"evil": 1}, {"hidden_size": 8},
]  # fmt: skip


@pytest.mark.parametrize("change", MANIFESTS, ids=str)
def test_manifests_are_checked_by_field(edited, change):
    folder = edited("cache", "manifest.json", change)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        TargetCache(folder).verify()
    assert caught.type is ValueError


RECORDS = [
    {"lengths": ["x"] * 16}, {"lengths": [20] * 1000}, {"lengths": 7}, {"lengths": [10**18] * 16},
    {"lengths": [-20] * 16}, {"lengths": [20.0] * 16}, {"checksums": []}, {"checksums": [None] * 16}, {"start": -1},
    {"start": True}, {"end": 10**9}, {"end": 3}, {"end": "16"}, {"sources": [99] * 16}, {"sources": {}},
    {"num_bytes": 1.5}, {"num_bytes": 3}, {"header_checksum": None}, {"digest": 7}, {"evil": 1},
    {"record_path": "/etc/passwd"}, {"lengths": [21] * 15 + [5]},
]  # fmt: skip


@pytest.mark.parametrize("change", RECORDS, ids=lambda change: str(change)[:30])
def test_records_are_checked_by_field(edited, change):
    folder = edited("cache", "rows-*.json", change)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        TargetCache(folder).verify()
    assert caught.type is ValueError


@pytest.mark.parametrize("change", [
    lambda channels: channels.pop("features.scale"),
    lambda channels: channels.update({"features.center": torch.zeros(3)}),
    lambda channels: channels["last_hidden_states.scale"].fill_(NAN),
    lambda channels: channels.update({"features.center": channels["features.center"].double()}),
])  # fmt: skip
def test_channels_are_checked(target, rows, tmp_path, change):
    folder = tmp_path / "cache"
    build_target_cache(target, rows, folder, target_layer_ids=TAPS, dtype="int4", progress=False)
    channels = load_file(folder / "channels.safetensors")
    change(channels)
    save_file(channels, folder / "channels.safetensors")
    record = read_record(folder / "manifest.json") | {"channels": file_checksum(folder / "channels.safetensors")}
    write_record(folder / "manifest.json", record)
    with pytest.raises(ValueError, match="channels.safetensors must hold center and scale of"):
        TargetCache(folder)


def test_states_that_a_dtype_cannot_hold_are_not_stored(target, rows, tmp_path):
    class Loud(TargetFeatures):
        def __call__(self, *args):
            features, last = super().__call__(*args)
            return features * 1e9, last

    source = Loud(target, TAPS)
    ids = torch.tensor([rows[0]["input_ids"]])
    assert torch.isfinite(RollingFeatures(source, tmp_path / "a", 10**6, dtype="bf16")(ids)[0]).all()
    with pytest.raises(
        ValueError, match="hidden states reach .*more than the cache's dtype holds. Store them in bf16"
    ):
        RollingFeatures(source, tmp_path / "b", 10**6, dtype="fp16")(ids)


def test_a_kept_row_that_went_bad_is_computed_again(target, rows, tmp_path):
    ids = torch.tensor([rows[0]["input_ids"]])
    first = RollingFeatures(TargetFeatures(target, TAPS), tmp_path, 10**6)
    features, _ = first(ids)
    (shard,) = tmp_path.glob("row-*.safetensors")
    record = read_record(shard.with_suffix(".json"))
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    tensors["features.values"][3, 3] = NAN
    save_file(tensors, shard)
    with open(shard, "rb") as file:
        record |= {"num_bytes": shard.stat().st_size, "header_checksum": _header_checksum(file)}
    write_record(shard.with_suffix(".json"), record | {"checksums": [_checksum(tensors)]})
    again = RollingFeatures(TargetFeatures(target, TAPS), tmp_path, 10**6)
    with pytest.warns(UserWarning, match="computed again: features has values that are not finite"):
        assert torch.equal(again(ids)[0], features)
    assert again.num_misses == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_finite_is_what_it_says(dtype):
    values = torch.full((2000,), torch.finfo(dtype).max, dtype=torch.float32).to(dtype)
    assert is_finite(values), "the sum of what is finite may not be"
    values[7] = NAN
    assert not is_finite(values)
    if dtype != torch.float8_e4m3fn:
        values[7] = -INF
        assert not is_finite(values)
    assert is_finite(torch.arange(3)) and is_finite(nn.Parameter(torch.zeros(0)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are of Unix")
@pytest.mark.parametrize("name", ["channels.safetensors", "rows-000000000-000000016.safetensors"])
def test_pipes_in_place_of_tensors(edited, name):
    """Nobody writes to them: who reads waits without end. A record can say that there is nothing in it."""
    change = {"dtype": "int8", "channels": 7} if name.startswith("channels") else {}
    folder = edited("cache", "manifest.json", change)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    record = folder / "rows-000000000-000000016.json"
    write_record(record, read_record(record) | {"num_bytes": 0})
    with pytest.raises(ValueError, match=f"{name} is no regular file"):
        TargetCache(folder).verify()


def test_only_files_of_the_cache_are_uploaded(hub, edited, tmp_path):
    folder = edited("cache", "manifest.json", {})
    (tmp_path / "private").write_text("private")
    (folder / "channels.safetensors").symlink_to(tmp_path / "private")  # states in fp32 need none
    (folder / "rows-mine.safetensors").write_text("private")
    (folder / "rows-of").mkdir()
    (folder / "rows-of" / "me.json").write_text("private")
    TargetCache(folder).push_to_hub("org/states")
    shard = "rows-000000000-000000016"
    assert set(hub.files("org/states", kind="dataset")) == {
        ".gitattributes", "README.md", "manifest.json", f"{shard}.json", f"{shard}.safetensors"
    }  # fmt: skip
    assert b"private" not in hub.blobs.values()
