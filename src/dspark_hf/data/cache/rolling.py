"""Between running the target for every batch and caching everything first: keep rows as they come, up to a budget.

Shapes: B batch, S sequence, L taps, E hidden size.
"""

import hashlib
import os
import re
import time
import warnings
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dspark_hf.data.features import TargetFeatures
from dspark_hf.messages import shown

from .codecs import check_dtype
from .manifest import MANIFEST_FILE, Manifest
from .processes import process_state
from .rows import (
    CHANNELS_FILE,
    STATES,
    RowCodec,
    all_channel_statistics,
    needs_channels,
    read_channels,
    write_channels,
)
from .shards import read_shard, write_shard

# Bytes of a row's two files besides its states: the header of the one, and the other.
_OVERHEAD = 1500
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class RollingFeatures:
    """A stand-in for [`~data.features.TargetFeatures`] that runs the target only for rows it has not kept.

    Rows are found again by their ids, also by a later run. As every epoch comes in another order, what is kept stays:
    the share of rows that need no target is the share that fits. Once the budget is full, a row makes room only if
    neither this epoch nor the last has used it. Values are those read back from storage whether a row was kept or not,
    so the loss does not depend on it. Processes share the folder, and each fills its part of the budget.

    Args:
        source ([`TargetFeatures`]): The frozen target.
        folder (`str` or `os.PathLike`): Where rows are kept.
        budget (`int`): Bytes on disk, of all processes.
        dtype (`str`, *optional*, defaults to `"bf16"`): As for [`build_target_cache`].

    Raises:
        `ValueError`: If the budget is not positive, there is no such dtype, or another target filled the folder.
    """

    def __init__(self, source: TargetFeatures, folder: str | os.PathLike, budget: int, *, dtype: str = "bf16"):
        if budget < 1:
            raise ValueError(f"The budget must be at least 1 byte, got {budget}.")
        self.source, self.target, self.folder, self.dtype = source, source.target, Path(folder), dtype
        check_dtype(dtype)
        taps = source.target_layer_ids
        wanted = Manifest.describe(source.target, None, taps, max_length=0, dtype=dtype, log_norm=False)
        self._shape = (len(taps), wanted.hidden_size, False)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        with self._lock:
            if (self.folder / MANIFEST_FILE).exists():
                Manifest.read(self.folder).check_same(wanted, self.folder)
            else:
                wanted.write(self.folder)
        state = process_state()
        self.budget = budget // state.num_processes
        self._codec: RowCodec | None = None
        # Bytes of what this process may delete: what it writes, and its share of what earlier runs left.
        self._kept_bytes = {
            path.stem: path.stat().st_size + path.with_suffix(".json").stat().st_size
            for path in self.folder.glob("row-*.safetensors")
            if path.with_suffix(".json").exists()
            and int(path.stem[4:12], 16) % state.num_processes == state.process_index
        }
        self.used = sum(self._kept_bytes.values())
        self.num_hits = self.num_misses = 0
        self._previous_epoch = self._epoch = time.time()
        self._idle: list[str] | None = None

    def begin_epoch(self) -> None:
        """Say that the data are about to be gone through again."""
        self._previous_epoch, self._epoch = self._epoch, time.time()
        self._idle = None

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of [`~data.features.TargetFeatures`], on the CPU."""
        input_ids = input_ids.cpu()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.cpu()
        rows = [ids[: int(row.sum())] for ids, row in zip(input_ids, mask, strict=True)]
        keys = [f"row-{hashlib.sha256(row.numpy().tobytes()).hexdigest()[:32]}" for row in rows]
        kept = {key: row for key in dict.fromkeys(keys) if (row := self._read(key)) is not None}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in kept}
        self.num_hits += len(kept)
        self.num_misses += len(missing)
        if missing:
            for key, encoded in zip(missing, self._compute(list(missing.values())), strict=True):
                kept[key] = self._codec.decode(encoded)
                self._keep(key, encoded)
        width = input_ids.shape[1]
        return tuple(_pad([kept[key][name] for key in keys], width) for name in STATES)

    def _compute(self, rows: list[Tensor]) -> list[dict[str, Tensor]]:
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        states = self.source(pad_sequence(rows, batch_first=True), mask)
        if self._codec is None:
            self._codec = self._make_codec(states, mask)
        loss_masks = [torch.ones_like(row).bool() for row in rows]
        return self._codec.encode_states(self.source, states, mask, rows, loss_masks)

    def _make_codec(self, states: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> RowCodec | None:
        """The codec of this folder; a new folder takes its statistics from the first batch."""
        channels = None
        if needs_channels(self.dtype):
            with self._lock:
                if not (self.folder / CHANNELS_FILE).exists():
                    if states is None:
                        return None
                    keep = mask.bool()
                    write_channels(self.folder, all_channel_statistics(state.cpu()[keep] for state in states))
                channels = read_channels(self.folder)
        return RowCodec(self.dtype, *self._shape, channels)

    def _read(self, key: str) -> dict[str, Tensor] | None:
        path = self.folder / f"{key}.json"
        if self._codec is None:
            self._codec = self._make_codec()
        if self._codec is None or not path.exists():
            return None
        try:
            row = self._codec.decode(read_shard(path)[0])
            _note_use(path)
        except (ValueError, OSError, IndexError) as error:
            # Another process may have deleted it just now; a damaged one is computed again.
            if path.exists():
                warnings.warn(f"A kept row is computed again: {error}", stacklevel=3)
            return None
        return row

    def _keep(self, key: str, encoded: dict[str, Tensor]) -> None:
        """Write a row, if there is room for it."""
        self._forget(key)
        size = sum(tensor.numel() * tensor.itemsize for tensor in encoded.values()) + _OVERHEAD
        while self.used + size > self.budget:
            if self._idle is None:
                self._idle = self._find_idle()
            if not self._idle:
                return
            self._forget(self._idle.pop())
        try:
            shard = write_shard(self.folder, 0, 1, [0], [encoded], "", name=key, durable=False)
        except OSError as error:
            warnings.warn(f"No more rows are kept, the target runs for all others: {error}", stacklevel=4)
            self.budget = self.used
            return
        _note_use(shard.record_path)
        self._kept_bytes[key] = shard.num_bytes + shard.record_path.stat().st_size
        self.used += self._kept_bytes[key]

    def _find_idle(self) -> list[str]:
        """Rows that neither this epoch nor the last has used, the one unused for longest at the end."""
        times = {}
        for key in self._kept_bytes:
            path = self.folder / f"{key}.json"
            times[key] = path.stat().st_mtime if path.exists() else 0.0
        idle = [key for key, used_at in times.items() if used_at < self._previous_epoch]
        return sorted(idle, key=times.get, reverse=True)

    def _forget(self, key: str) -> None:
        self.used -= self._kept_bytes.pop(key, 0)
        for ending in (".json", ".safetensors"):
            (self.folder / f"{key}{ending}").unlink(missing_ok=True)


def _note_use(path: Path) -> None:
    # Said explicitly: a file system's own clock may run some milliseconds behind the one that epochs are timed by.
    now = time.time()
    os.utime(path, (now, now))


def parse_size(text: str) -> int:
    """Bytes of a size in `text` such as `50GB` or `512 MiB`.

    Raises:
        `ValueError`: If it is none.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(text).upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"Expected a size such as 50GB or 512MiB, got {shown(text)}.")
    return int(float(match[1]) * _UNITS[match[2]])


def _pad(states: list[Tensor], width: int) -> Tensor:
    padded = states[0].new_zeros(len(states), width, states[0].shape[-1])
    for row, state in enumerate(states):
        padded[row, : len(state)] = state
    return padded
