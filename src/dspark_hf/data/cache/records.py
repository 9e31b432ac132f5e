"""Small JSON files that know when they are damaged."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dspark_hf.files import read_json, whole_file
from dspark_hf.messages import shown

REMEDY = "Delete it and build the cache again: only what is missing is computed."


def write_record(path: Path, record: dict[str, Any], durable: bool = True) -> None:
    """Write a JSON object with its own checksum.

    Args:
        path (`Path`): The file.
        record (`dict`): The object.
        durable (`bool`, *optional*, defaults to `True`): Whether to wait until the disk has it.
    """
    with whole_file(path, durable=durable) as temp:
        temp.write_text(json.dumps({**record, "sha256": _digest(record)}, indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """Read what [`write_record`] wrote to `path`.

    Raises:
        `ValueError`: If the file cannot be read, or a byte of it has changed.
    """
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is missing or damaged ({error}). {REMEDY}") from error
    expected = record.pop("sha256", None)
    if _digest(record) != expected:
        raise ValueError(f"{path} is damaged: its content does not have its checksum. {REMEDY}")
    return record


def check_counts(record: Mapping[str, Any], path: Path, *names: str, lists: Sequence[str] = ()) -> None:
    """Check that fields count something.

    Args:
        record (`Mapping`): The fields.
        path (`Path`): Where they were read, for the message.
        names (`str`): Those that must be whole numbers from 0.
        lists (`Sequence[str]`, *optional*): Those that must be lists of such.

    Raises:
        `ValueError`: If one is not.
    """
    for name in (*names, *lists):
        value = record[name]
        numbers = value if name in lists and isinstance(value, list) else [value]
        if (name in lists) != isinstance(value, list) or not all(type(one) is int and one >= 0 for one in numbers):
            kind = "a list of whole numbers" if name in lists else "a whole number"
            raise ValueError(f"{path}: {name} must be {kind} from 0, got {shown(value)}. {REMEDY}")


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
