"""Files that are whole or absent: written aside, then renamed. And JSON files, read with an error that says which."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError


@contextmanager
def whole_file(path: str | os.PathLike, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes that place at the end, or vanishes on any failure.

    Args:
        path (`str` or `os.PathLike`): The file; its folder is made where it is missing.
        durable (`bool`, *optional*, defaults to `False`): Whether to wait until the file is on the disk. Otherwise it
            may be lost with the machine's power, not with the process.

    Raises:
        `OSError`: If it cannot be written, such as on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temp
        if durable:
            with open(temp, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temp, path)
        if durable:
            _sync_folder(path.parent)
    except SafetensorError as error:
        raise OSError(f"Cannot write {path}: {error}. What was written before is kept.") from error
    finally:
        temp.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write text so that the file is either whole or as it was."""
    with whole_file(path) as temp:
        temp.write_text(text, encoding="utf-8")


def sole_writer(path: Path) -> FileLock:
    """The lock of a file that one process at a time may write, acquired; its folder is made where it is missing.

    Raises:
        `ValueError`: If another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"Another run is writing to {path}. Wait for it, or choose another file.") from None
    return lock


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object.

    Raises:
        `ValueError`: If the file is no such thing.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); fetch or write it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write a JSON object so that the file is either whole or as it was."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _sync_folder(folder: Path) -> None:
    """Push a rename to the disk, where the system can do that for folders."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
