"""A shard: some rows' states in one safetensors file, and beside it a record of rows, lengths and checksums.

A shard exists when its record does: the record is written last.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dspark_hf.data.conversations import conversation_of, has_conversation
from dspark_hf.files import open_regular, whole_file
from dspark_hf.messages import shown

from .records import REMEDY, check_counts, read_record, write_record

_RECORD = ".json"
_DATA = ".safetensors"


@dataclass(frozen=True)
class Shard:
    """What a shard's record says.

    Attributes:
        record_path (`pathlib.Path`): The record; the data is beside it.
        start, end (`int`): The source rows it covers, `end` excluded.
        sources (`list[int]`): The source row of each of its rows; rows without anything to learn are left out.
        lengths (`list[int]`): Tokens of each of its rows.
        checksums (`list[int]`): CRC-32 of each row's bytes in all tensors.
        header_checksum (`int`): CRC-32 of the file up to the data.
        num_bytes (`int`): Size of the data file.
        digest (`str`): Of the source rows.
    """

    record_path: Path
    start: int
    end: int
    sources: list[int]
    lengths: list[int]
    checksums: list[int]
    header_checksum: int
    num_bytes: int
    digest: str

    @property
    def data_path(self) -> Path:
        """The file of tensors beside the record."""
        return self.record_path.with_suffix(_DATA)


def find_shards(folder: Path) -> list[Shard]:
    """The shards in a `folder`, in the order of their rows.

    Raises:
        `ValueError`: If a record is damaged, or two shards hold the same source row.
    """
    shards = [_shard(path) for path in folder.glob(f"rows-*{_RECORD}")]
    shards.sort(key=lambda shard: (shard.start, shard.end))
    for first, second in zip(shards, shards[1:], strict=False):
        if second.start < first.end:
            raise ValueError(
                f"{first.data_path} and {second.data_path} both hold source row {second.start}: two builds wrote "
                "here. Delete one of them with its .json file and build again."
            )
    return shards


def remove_remains(folder: Path) -> None:
    """Delete what killed writers left in a `folder`: files written aside, and data without a record."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"rows-*{_DATA}"):
        if not path.with_suffix(_RECORD).exists():
            path.unlink(missing_ok=True)


def write_shard(
    folder: Path,
    start: int,
    end: int,
    sources: Sequence[int],
    rows: Sequence[Mapping[str, Tensor]],
    digest: str,
    *,
    name: str | None = None,
    durable: bool = True,
) -> Shard:
    """Write encoded rows, tensors `(tokens, ...)` of the same names, as one shard.

    Args:
        folder (`pathlib.Path`): Where.
        start, end (`int`): The source rows it covers, `end` excluded.
        sources (`Sequence[int]`): The source row of each row.
        rows (`Sequence[Mapping]`): The rows; there may be none.
        digest (`str`): Of the source rows, kept in the record.
        name (`str`, *optional*): File name without its ending; after the source rows, if not given.
        durable (`bool`, *optional*, defaults to `True`): Whether to wait until the files are on the disk.
    """
    path = folder / ((name or _name(start, end)) + _DATA)
    names = sorted(rows[0]) if rows else []
    with whole_file(path, durable=durable) as temp:
        save_file({key: torch.cat([row[key] for row in rows]).contiguous() for key in names}, temp)
        with open(temp, "rb") as file:
            header_checksum = _header_checksum(file)
        num_bytes = temp.stat().st_size
    shard = Shard(
        record_path=path.with_suffix(_RECORD),
        start=start,
        end=end,
        sources=list(sources),
        lengths=[len(row[names[0]]) for row in rows],
        checksums=[_checksum(row) for row in rows],
        header_checksum=header_checksum,
        num_bytes=num_bytes,
        digest=digest,
    )
    record = {key: value for key, value in vars(shard).items() if key != "record_path"}
    write_record(shard.record_path, record, durable)
    return shard


def read_shard(record_path: Path) -> "ShardReader":
    """Open the shard whose record is at `record_path`.

    Raises:
        `ValueError`: If record or data are missing, cut short or changed.
    """
    return ShardReader(_shard(record_path))


class ShardReader:
    """Memory-mapped access to the rows of one shard; each row's bytes are checked when they are read.

    Args:
        shard ([`Shard`]): The shard, as its record tells of it.

    Raises:
        `ValueError`: If the file is missing, cut short or changed.
    """

    def __init__(self, shard: Shard):
        self.shard = shard
        path = shard.data_path
        check_size(shard)
        try:
            with open_regular(path) as file:
                if _header_checksum(file) != shard.header_checksum:
                    raise ValueError(f"{path} is damaged: its header has changed. {_remedy(shard)}")
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"Cannot read {path}: {error}. {_remedy(shard)}") from error
        self._names = sorted(self._file.keys())
        self._offsets = [0, *accumulate(shard.lengths)]
        for name in self._names:
            shape = self._file.get_slice(name).get_shape()
            if shape[:1] != self._offsets[-1:]:
                raise ValueError(
                    f"{path}: {name} has shape {shape}, but {shard.record_path.name} speaks of {self._offsets[-1]} "
                    f"tokens. {_remedy(shard)}"
                )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The encoded tensors of one row.

        Raises:
            `ValueError`: If its bytes are not those that were written.
        """
        start, end = self._offsets[index], self._offsets[index + 1]
        row = {name: self._file.get_slice(name)[start:end] for name in self._names}
        if _checksum(row) != self.shard.checksums[index]:
            raise ValueError(
                f"{self.shard.data_path} is damaged: row {index} of it (source row {self.shard.sources[index]}) does "
                f"not have its checksum. {_remedy(self.shard)}"
            )
        return row


def check_size(shard: Shard) -> None:
    """Check that the data file of a `shard` is there and has the size that it was written with.

    Raises:
        `ValueError`: If not.
    """
    try:
        num_bytes = shard.data_path.stat().st_size
    except OSError as error:
        raise ValueError(f"Cannot read {shard.data_path}: {error}. {_remedy(shard)}") from error
    if num_bytes != shard.num_bytes:
        raise ValueError(f"{shard.data_path} has {num_bytes} bytes instead of {shard.num_bytes}. {_remedy(shard)}")


def _remedy(shard: Shard) -> str:
    return REMEDY.replace("it", f"it and {shard.record_path.name}", 1)


def _shard(path: Path) -> Shard:
    record = read_record(path)
    wanted = {field.name for field in fields(Shard)} - {"record_path"}
    if set(record) != wanted:
        raise ValueError(f"{path} must hold {sorted(wanted)}, got {sorted(record)}. {REMEDY}")
    numbers = ("start", "end", "header_checksum", "num_bytes")
    check_counts(record, path, *numbers, lists=("sources", "lengths", "checksums"))
    shard = Shard(record_path=path, **record)
    if not isinstance(shard.digest, str):
        raise ValueError(f"{path}: digest must be text, got {shown(shard.digest)}. {REMEDY}")
    if path.stem.startswith("rows-") and path.stem != _name(shard.start, shard.end):
        raise ValueError(f"{path} says that it covers source rows {shard.start} to {shard.end}. {REMEDY}")
    if not len(shard.sources) == len(shard.lengths) == len(shard.checksums):
        raise ValueError(f"{path}: sources, lengths and checksums must be equally long. {REMEDY}")
    if any(not shard.start <= source < shard.end for source in shard.sources):
        raise ValueError(f"{path}: sources must lie from start to end, got {shown(shard.sources)}. {REMEDY}")
    return shard


def _name(start: int, end: int) -> str:
    return f"rows-{start:09d}-{end:09d}"


def _checksum(row: Mapping[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(row):
        checksum = zlib.crc32(row[name].contiguous().view(torch.uint8).numpy(), checksum)
    return checksum


def _header_checksum(file: Any) -> int:
    prefix = file.read(8)
    # A damaged length must not make us read gigabytes.
    return zlib.crc32(prefix + file.read(min(int.from_bytes(prefix, "little"), 2**24)))


def row_bytes(row: Mapping[str, Any]) -> bytes:
    """A source `row` as bytes: its text, or its ids and mask."""
    if has_conversation(row):
        try:
            given = conversation_of(row)
        except ValueError:
            # It has no tokens, whatever it says.
            return json.dumps(row, sort_keys=True, default=str).encode()
        text = [given.pop("messages"), given.pop("complete"), given.pop("thinking", None), *sorted(given.items())]
        return json.dumps(text, sort_keys=True).encode()
    ids, mask = (torch.as_tensor(row[name]) for name in ("input_ids", "loss_mask"))
    return ids.to(torch.int64).numpy().tobytes() + mask.bool().numpy().tobytes()
