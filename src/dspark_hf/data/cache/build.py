"""Writing a target cache: by one process or many, cut off at any time and continued."""

import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dspark_hf.data.features import TargetFeatures
from dspark_hf.data.left_out import LeftOut
from dspark_hf.data.rows import encode_row, row_name

from .codecs import check_dtype
from .dataset import TargetCache, missing_ranges
from .estimate import estimate_target_cache
from .manifest import MANIFEST_FILE, Manifest, file_checksum
from .processes import process_state
from .rows import (
    CHANNELS_FILE,
    RowCodec,
    batches,
    needs_channels,
    read_channels,
    sample_channels,
    write_channels,
)
from .shards import Shard, check_size, find_shards, remove_remains, row_bytes, write_shard

_ESTIMATE_ROWS = 200


def build_target_cache(
    target: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike,
    *,
    target_layer_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "bf16",
    log_norm: bool = False,
    max_length: int = 4096,
    keep_special_tokens: bool = False,
    strict: bool = False,
    shard_bytes: int = 2**28,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> TargetCache:
    """Run the frozen target on every row once and keep what a drafter learns from on disk.

    Rows are written shard by shard, each in one step: a build killed at any moment loses the shard it was working on,
    and the same call goes on where it was. Rows added at the end are appended by the same call. Under `torchrun` or
    `accelerate launch` each process computes a range of what is missing; they may be more or fewer each time. Rows
    without a token that the target wrote are left out.

    Args:
        target (`PreTrainedModel`): The target, on the device where it shall run.
        rows (`Sequence[Mapping]`): A list or a `datasets.Dataset` of conversations, or of `input_ids` and
            `loss_mask`.
        folder (`str` or `os.PathLike`): Where the cache is, or will be.
        target_layer_ids (`Sequence[int]`): Taps: `drafter.config.target_layer_ids`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The target's; needed for conversations.
        keep_special_tokens (`bool`, *optional*, defaults to `False`): Whether conversations whose text spells special
            tokens are kept ([`~data.rows.encode_row`]).
        dtype (`str`, *optional*, defaults to `"bf16"`): How states are stored: `fp32`, `fp16`, `bf16`, `fp8` (e4m3),
            or `int8` and `int4` codes in groups.
        log_norm (`bool`, *optional*, defaults to `False`): Whether to store the `logsumexp` of the target's logits,
            which a reduced draft vocabulary reads; without it training computes it.
        max_length (`int`, *optional*, defaults to 4096): Rows are cut to so many tokens.
        strict (`bool`, *optional*, defaults to `False`): Whether a conversation that cannot be encoded is an error,
            instead of being left out and counted.
        shard_bytes (`int`, *optional*, defaults to 256 MiB): A shard is closed at this size, and held in memory until.
        batch_tokens (`int`, *optional*, defaults to 4096): Tokens per forward pass, padding counted.
        progress (`bool`, *optional*, defaults to `True`): Whether the first process shows a progress bar.

    Returns:
        [`TargetCache`]: The cache, complete.

    Raises:
        `ValueError`: If a setting is out of range, the folder holds a cache of other rows or settings, another build
            is writing there, or the disk is too small; all before the target runs over the rows.
    """
    check_dtype(dtype)
    for name, value in {"max_length": max_length, "shard_bytes": shard_bytes, "batch_tokens": batch_tokens}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if not hasattr(rows, "__len__") or not len(rows):
        raise ValueError("rows must be a list or a dataset with a length, and not be empty. Load streamed rows first.")
    # What rows become depends on the tokenizer as well; without one they are ids already.
    keep_special_tokens = keep_special_tokens or tokenizer is None
    encode = partial(encode_row, tokenizer=tokenizer, max_length=max_length, keep_special_tokens=keep_special_tokens)
    encode(rows[0], where=row_name(0), left_out=LeftOut(strict))
    folder, state = Path(folder), process_state()
    source = TargetFeatures(target, target_layer_ids)
    wanted = Manifest.describe(
        target,
        tokenizer,
        list(target_layer_ids),
        max_length=max_length,
        dtype=dtype,
        log_norm=log_norm,
        keep_special_tokens=keep_special_tokens,
    )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        if state.is_main_process:
            lock.acquire(timeout=0)
            quiet = LeftOut(strict)
            encoded = (encode(row, where=row_name(number), left_out=quiet) for number, row in enumerate(rows))
            _begin(folder, wanted, source, (row for row in encoded if any(row["loss_mask"])))
        state.wait_for_everyone()
        manifest = Manifest.read(folder)
        manifest.check_same(wanted, folder)
        shards = find_shards(folder)
        _check_sources(shards[state.process_index :: state.num_processes], rows, folder)
        missing = missing_ranges(shards, len(rows))
        if state.is_main_process and missing:
            _check_space(folder, wanted, target, rows, tokenizer, sum(end - start for start, end in missing))
        # Nobody writes before everybody knows what is missing.
        state.wait_for_everyone()
        channels = read_channels(folder) if needs_channels(dtype) else None
        codec = RowCodec(dtype, len(wanted.target_layer_ids), wanted.hidden_size, log_norm, channels)
        left_out = LeftOut(strict)
        encode = partial(encode, left_out=left_out)
        builder = _Builder(source, codec, folder, rows, encode, shard_bytes, batch_tokens)
        mine = _share(missing, state.process_index, state.num_processes)
        builder.run(mine, progress and state.is_main_process)
        left_out.num_rows = sum(end - start for start, end in mine)
        left_out.tell(str(folder))
        _wait_for_all(folder, len(rows))
    except Timeout:
        raise ValueError(f"Another build is writing to {folder}. Wait for it, or choose another folder.") from None
    finally:
        lock.release()
    return TargetCache(folder)


class _Builder:
    """Computes and writes the shards of one process."""

    def __init__(
        self,
        source: TargetFeatures,
        codec: RowCodec,
        folder: Path,
        rows: Sequence[Mapping[str, Any]],
        encode: Callable[[Mapping[str, Any]], dict[str, Any]],
        shard_bytes: int,
        batch_tokens: int,
    ):
        self.source, self.codec, self.folder, self.rows = source, codec, folder, rows
        self.encode, self.batch_tokens = encode, batch_tokens
        self.shard_tokens = max(1, int(shard_bytes / codec.bytes_per_token))

    def run(self, ranges: Sequence[tuple[int, int]], progress: bool) -> None:
        """Compute the source rows of some ranges `[start, end)`."""
        num_rows, num_tokens = sum(end - start for start, end in ranges), 0
        began = time.perf_counter()
        # A log file gets no bars, which redraw.
        disable = None if progress and num_rows else True
        with tqdm(total=num_rows, desc="Target cache", unit="row", disable=disable) as bar:
            for start, end, digest, kept in self._plan(ranges):
                encoded: list[dict[str, Tensor] | None] = [None] * len(kept)
                lengths = [len(row["input_ids"]) for _, row in kept]
                for chosen in batches(lengths, self.batch_tokens):
                    batch = self.codec.encode(self.source, [kept[index][1] for index in chosen])
                    for index, row in zip(chosen, batch, strict=True):
                        encoded[index] = row
                    num_tokens += sum(lengths[index] for index in chosen)
                    bar.update(len(chosen))
                    bar.set_postfix_str(f"{num_tokens / (time.perf_counter() - began):.0f} tokens/s")
                write_shard(self.folder, start, end, [number for number, _ in kept], encoded, digest)
                bar.update(end - start - len(kept))

    def _plan(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, str, list[tuple[int, dict]]]]:
        """The shards to write: source rows `[start, end)`, their digest, and the encoded rows worth keeping."""
        for first, last in ranges:
            start, checksum, num_tokens, kept = first, 0, 0, []
            for number in range(first, last):
                given = self.rows[number]
                checksum = zlib.crc32(row_bytes(given), checksum)
                row = self.encode(given, where=row_name(number))
                if any(row["loss_mask"]):
                    kept.append((number, row))
                    num_tokens += len(row["input_ids"])
                if num_tokens >= self.shard_tokens or number == last - 1:
                    yield start, number + 1, f"{checksum:08x}", kept
                    start, checksum, num_tokens, kept = number + 1, 0, 0, []


def _begin(folder: Path, wanted: Manifest, source: TargetFeatures, rows: Iterator[Mapping[str, Any]]) -> None:
    """Make a new cache's manifest, or check that a cache can be continued."""
    remove_remains(folder)
    if (folder / MANIFEST_FILE).exists():
        Manifest.read(folder).check_same(wanted, folder)
        return
    if any(folder.glob("rows-*")):
        raise ValueError(f"{folder} holds shards but no {MANIFEST_FILE}. Restore it, or choose another folder.")
    channels = None
    if needs_channels(wanted.dtype):
        write_channels(folder, sample_channels(source, rows))
        channels = file_checksum(folder / CHANNELS_FILE)
    replace(wanted, channels=channels).write(folder)


def _check_sources(shards: Sequence[Shard], rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Raise `ValueError` unless these shards are whole, as far as sizes tell, and were made from these rows."""
    for shard in shards:
        check_size(shard)
        checksum = 0
        for number in range(shard.start, min(shard.end, len(rows))):
            checksum = zlib.crc32(row_bytes(rows[number]), checksum)
        if shard.end > len(rows) or f"{checksum:08x}" != shard.digest:
            raise ValueError(
                f"{folder} was built from other rows: source rows {shard.start} to {shard.end - 1} differ from those "
                f"given ({len(rows)} rows). Give the same rows, new ones at the end, or choose another folder."
            )


def _check_space(
    folder: Path, wanted: Manifest, target: PreTrainedModel, rows: Sequence, tokenizer: Any, num_missing: int
) -> None:
    estimate = estimate_target_cache(
        target.config,
        rows,
        num_taps=len(wanted.target_layer_ids),
        tokenizer=tokenizer,
        max_length=wanted.max_length,
        log_norm=wanted.log_norm,
        num_sampled=_ESTIMATE_ROWS,
    )
    needed = estimate.num_bytes(wanted.dtype) * num_missing // len(rows)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"The cache needs about {needed / 1e9:.1f} GB more, but {folder} has {free / 1e9:.1f} GB free. Use a "
            f"smaller dtype than {wanted.dtype} (int4 is the smallest), fewer rows, or another disk."
        )


def _share(ranges: Sequence[tuple[int, int]], index: int, count: int) -> list[tuple[int, int]]:
    """The part of some ranges that process `index` of `count` computes: equally many source rows each."""
    total = sum(end - start for start, end in ranges)
    first, last = total * index // count, total * (index + 1) // count
    shares, passed = [], 0
    for start, end in ranges:
        low, high = max(first - passed, 0), min(last - passed, end - start)
        if low < high:
            shares.append((start + low, start + high))
        passed += end - start
    return shares


def _wait_for_all(folder: Path, num_rows: int) -> None:
    """Wait until every source row is covered. File names tell, so that no process waits for a message from others
    that may be hours away."""
    while True:
        spans = (path.stem.split("-")[1:] for path in folder.glob("rows-*.json"))
        if sum(int(end) - int(start) for start, end in spans) >= num_rows:
            return
        time.sleep(1)
