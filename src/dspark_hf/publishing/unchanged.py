"""Files that must stay as they are from when they are looked at until they are sent."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd

# Weights and what is larger go before a commit, by their digests.
_WEIGHTS, _LARGEST = ".safetensors", 10**7


class Unchanged:
    """A watch over files of an upload; as a context manager it says so where one of them is the reason of an error."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._before: dict[str, tuple[int, ...] | None] = {}

    def __enter__(self) -> "Unchanged":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.check()

    def watch(self, files: Mapping[str, Path]) -> None:
        """Remember how `files` are, by their paths in the repository."""
        self._files = dict(files)
        self._before = {path: _state(file) for path, file in files.items()}

    def check(self) -> None:
        """Check that no file was written, replaced or removed since.

        Raises:
            `ValueError`: If one was.
        """
        for path, file in self._files.items():
            if _state(file) != self._before[path]:
                raise ValueError(
                    f"{path} was changed or removed while it was about to be sent, so nothing is pushed. Push again "
                    "when nothing writes to its folder."
                )


def addition(path: str, file: Path) -> CommitOperationAdd:
    """A `file` to send to `path`; what goes with the commit itself is read here, not after the last look."""
    is_large = file.suffix == _WEIGHTS or file.stat().st_size > _LARGEST
    return CommitOperationAdd(path, file if is_large else file.read_bytes())


def _state(file: Path) -> tuple[int, ...] | None:
    """What changes with a file, of a link that of the link itself; None if there is no file."""
    try:
        found = os.lstat(file)
    except OSError:
        return None
    return found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns
