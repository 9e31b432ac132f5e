"""A target cache as a data set: random access, selection, and its way to and from the Hub."""

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from dspark_hf.modeling import DraftConfig

from . import hub
from .manifest import MANIFEST_FILE, Manifest, file_checksum
from .rows import CHANNELS_FILE, RowCodec, check_ids, needs_channels, read_channels
from .shards import Shard, ShardReader, find_shards

_OPEN_SHARDS = 64
_CARD = """---
tags:
- dspark
- speculative-decoding
viewer: false
---

# Target cache of {target}

Hidden states of {target} for training a drafter with dspark_hf: {num_rows} rows, {num_tokens} tokens, taps {taps},
stored as {dtype} ({bytes_per_token:.0f} bytes per token).

```python
from dspark_hf import TargetCache

cache = TargetCache.from_hub("{repo_id}")
```
"""


class TargetCache(Dataset):
    """Rows that [`build_target_cache`] wrote: memory-mapped, in the order of their source rows.

    A row is a `dict` of tensors that the trainer's collator takes: `input_ids`, `loss_mask`, `features`
    `(tokens, taps * hidden)`, `last_hidden_states` `(tokens, hidden)` and, if the cache has it, `log_norm`. Each row's
    checksum is tested when it is read. A slice gives a `dict` of lists, as in `datasets`.

    Args:
        folder (`str` or `os.PathLike`): The cache.

    Raises:
        `ValueError`: If there is no cache, or its records are damaged; reading a row also raises it.

    Example:

    ```python
    cache = TargetCache("cache")
    trainer = DraftTrainer(drafter, target, args, train_dataset=cache.select(range(100, len(cache))))
    ```
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.shards = find_shards(self.folder)
        manifest, channels = self.manifest, None
        if needs_channels(manifest.dtype):
            channels = read_channels(self.folder)
            if file_checksum(self.folder / CHANNELS_FILE) != manifest.channels:
                raise ValueError(
                    f"{self.folder / CHANNELS_FILE} is damaged: it does not have its checksum. Without it no row can "
                    "be decoded: fetch it again, or build the cache in another folder."
                )
        num_taps = len(manifest.target_layer_ids)
        self._codec = RowCodec(manifest.dtype, num_taps, manifest.hidden_size, manifest.log_norm, channels)
        self._places = [(number, row) for number, shard in enumerate(self.shards) for row in range(len(shard.lengths))]
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        for first, second in missing_ranges(self.shards, self.shards[-1].end if self.shards else 0):
            warnings.warn(
                f"{self.folder} lacks source rows {first} to {second - 1}: its build was cut off. Run it again to "
                "compute them.",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: int | slice | Sequence[int]) -> dict[str, Any]:
        if isinstance(key, str | float):
            raise TypeError(f"Expected the number of a row, a slice or a list of numbers, got {key!r}.")
        if isinstance(key, slice) or not hasattr(key, "__index__"):
            chosen = range(*key.indices(len(self))) if isinstance(key, slice) else key
            rows = [self[index] for index in chosen]
            return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        index = key.__index__()
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no row {index} in a cache of {len(self)} rows.")
        return self._row(*self._places[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"TargetCache({str(self.folder)!r}: {len(self)} rows, {self.num_tokens} tokens of {manifest.target} as "
            f"{manifest.dtype}, {self.bytes_per_token:.0f} bytes per token)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file does not travel to another process; it is opened again there.
        return {**self.__dict__, "_readers": OrderedDict()}

    def select(self, indices: Iterable[int]) -> "TargetCache":
        """A view of some rows, in the order given.

        Args:
            indices (`Iterable[int]`): Their places, from 0.

        Returns:
            [`TargetCache`]: It reads the same files.

        Raises:
            `IndexError`: If there is no such row.
        """
        view = type(self).__new__(type(self))
        view.__dict__.update(self.__getstate__())
        view._places = []
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"There is no row {index} in a cache of {len(self)} rows.")
            view._places.append(self._places[index])
        return view

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, without reading any."""
        return [self.shards[number].lengths[row] for number, row in self._places]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(self.lengths)

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk per token, of all shards, records and headers included."""
        paths = [path for shard in self.shards for path in (shard.data_path, shard.record_path)]
        num_tokens = sum(sum(shard.lengths) for shard in self.shards)
        return sum(path.stat().st_size for path in paths) / max(num_tokens, 1)

    def verify(self) -> None:
        """Read every row once.

        Raises:
            `ValueError`: At the first file that is missing, cut short or changed, or the first row that no drafter
                can learn from; the message names it.
        """
        for place in self._places:
            self._row(*place)

    def check_fits(self, config: DraftConfig, target: Any = None, tokenizer: Any = None) -> None:
        """Raise `ValueError` unless a drafter with this config, target and tokenizer can learn from the cache.

        Args:
            config ([`DraftConfig`]): The drafter's.
            target (`PreTrainedModel`, *optional*): Its target, if that is at hand.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): The target's, the same.
        """
        self.manifest.check_fits(config, target, tokenizer)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload target cache",
    ) -> Any:
        """Upload the whole cache as a dataset repository, in place of a cache that is there.

        What an earlier or interrupted upload has brought there is not sent again.

        Args:
            repo_id (`str`): The repository; it is created if need be.
            private (`bool`, *optional*): Whether a new repository is private.
            revision (`str`, *optional*): Branch, created if need be.
            token (`str`, *optional*): Access token.
            commit_message (`str`, *optional*): Of the commit.

        Returns:
            `huggingface_hub.CommitInfo`.

        Raises:
            `ValueError`: If a shard is missing or cut short, a file holds a secret, or the Hub refuses or does not
                answer, with what to do about it.
        """
        for shard in self.shards:
            ShardReader(shard)
        whole = TargetCache(self.folder)
        files = [path.name for shard in whole.shards for path in (shard.record_path, shard.data_path)]
        files += [MANIFEST_FILE, *([CHANNELS_FILE] if needs_channels(self.manifest.dtype) else [])]
        card = _CARD.format(
            target=self.manifest.target,
            num_rows=len(whole),
            num_tokens=whole.num_tokens,
            dtype=self.manifest.dtype,
            bytes_per_token=whole.bytes_per_token,
            taps=self.manifest.target_layer_ids,
            repo_id=repo_id,
        )
        options = {"private": private, "revision": revision, "token": token, "commit_message": commit_message}
        return hub.upload(self.folder, files, card, repo_id, **options)

    @classmethod
    def from_hub(
        cls, repo_id: str, *, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
    ) -> "TargetCache":
        """Download a cache that was pushed and open it.

        Args:
            repo_id (`str`): The dataset repository.
            revision (`str`, *optional*): Branch, tag or commit.
            token (`str`, *optional*): Access token.
            cache_dir (`str`, *optional*): Where files are kept; the Hub's cache, if not given.

        Returns:
            [`TargetCache`].

        Raises:
            `ValueError`: If the repository holds no cache, or the Hub refuses or does not answer, with what to do
                about it.
        """
        folder = hub.download(repo_id, revision=revision, token=token, cache_dir=cache_dir)
        try:
            return cls(folder)
        except ValueError as error:
            raise ValueError(
                f"{repo_id} on the Hub cannot be used as a target cache, and was fetched as it is there: {error}"
            ) from error

    def _row(self, number: int, row: int) -> dict[str, Any]:
        """A row, which others may have written: checksums say only that it is as they left it."""
        encoded = self._reader(number)[row]
        try:
            decoded = self._codec.decode(encoded)
            check_ids(decoded["input_ids"], self.manifest.vocab_size)
        except ValueError as error:
            shard = self.shards[number]
            raise ValueError(
                f"{shard.data_path}, row {row} of it (source row {shard.sources[row]}): {error}. Build the cache "
                "again in another folder."
            ) from error
        return decoded

    def _reader(self, number: int) -> ShardReader:
        if number not in self._readers:
            if len(self._readers) >= _OPEN_SHARDS:
                self._readers.popitem(last=False)
            self._readers[number] = ShardReader(self.shards[number])
        self._readers.move_to_end(number)
        return self._readers[number]


def missing_ranges(shards: Sequence[Shard], num_rows: int) -> list[tuple[int, int]]:
    """Source rows `[first, last)` that none of `shards`, which are in order, covers, of `num_rows` in all."""
    missing, reached = [], 0
    for shard in shards:
        if shard.start > reached:
            missing.append((reached, shard.start))
        reached = shard.end
    return [*missing, (reached, num_rows)] if reached < num_rows else missing
