"""Files that are whole or absent: written aside, pushed to the disk, then renamed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

TEMP_SUFFIX = ".tmp"


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes that place at the end, or vanishes on any failure.

    A file that is not `durable` may be lost with the machine's power, not with the process.

    Raises:
        `OSError`: If it cannot be written, such as on a full disk.
    """
    temp = path.with_name(f"{path.name}.{os.getpid()}{TEMP_SUFFIX}")
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


def write_record(path: Path, record: dict[str, Any], durable: bool = True) -> None:
    """Write a JSON object with its own checksum."""
    with whole_file(path, durable) as temp:
        temp.write_text(json.dumps({**record, "sha256": _digest(record)}, indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """Read what [`write_record`] wrote.

    Raises:
        `ValueError`: If the file cannot be read, or a byte of it has changed.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        expected = record.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}). {REMEDY}") from error
    if _digest(record) != expected:
        raise ValueError(f"{path} is damaged: its content does not have its checksum. {REMEDY}")
    return record


REMEDY = "Delete it and build the cache again: only what is missing is computed."


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Push a rename to the disk, where the system can do that for folders."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
