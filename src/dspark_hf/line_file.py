"""Files of lines that grow and are never lost: answers, parts of a measurement."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .files import named_error, open_regular, sole_writer


class LineFile:
    """A text file that one process at a time appends lines to; as a context manager it is locked, and closed after.

    What is appended is on the disk when the call returns. A process that is killed leaves at most part of one line
    behind, which is neither read nor kept.

    Args:
        path (`str` or `os.PathLike`): The file; its folder is made where it is missing.

    Raises:
        `ValueError`: On entering, if another process holds it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file = self._lock = None

    def __enter__(self) -> "LineFile":
        self._lock = sole_writer(self.path)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()

    def has_content(self) -> bool:
        """Whether there is anything in the file."""
        return self.path.exists() and self.path.stat().st_size > 0

    def read(self) -> list[bytes]:
        """The lines that are whole, without their breaks. The file stays as it is."""
        return self._whole().splitlines()

    def begin(self) -> None:
        """Open the file for appending, behind its last whole line."""
        if self.has_content():
            os.truncate(self.path, len(self._whole()))
        # Without a buffer, which would be written again on closing.
        self._file = open(self.path, "ab", buffering=0)

    def append(self, lines: Iterable[str]) -> None:
        """Write `lines`, which come without their breaks, and push them to the disk; after [`begin`].

        Raises:
            `OSError`: If there is no room for them; the file is as it was then.
        """
        content = memoryview("".join(f"{line}\n" for line in lines).encode())
        length = os.fstat(self._file.fileno()).st_size
        try:
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), length)
            raise named_error(error, self.path) from None

    def _whole(self) -> bytes:
        content = b""
        if self.path.exists():
            with open_regular(self.path) as file:
                content = file.read()
        return content[: content.rfind(b"\n") + 1]
