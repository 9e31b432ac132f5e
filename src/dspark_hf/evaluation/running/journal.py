"""Parts of a long measurement, each on the disk as soon as it is made, so that a stopped run can go on."""

import json
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dspark_hf.files import parse_json
from dspark_hf.line_file import LineFile
from dspark_hf.messages import shown
from dspark_hf.provenance import changes


class Journal:
    """A JSON lines file of what is made so far: what it is made with, then a part a line, each with its checksum.

    Args:
        path (`str` or `Path`, *optional*): The file; without one, parts are kept in memory alone.
        made_with (`dict`): What the parts depend on, JSON-able; a journal that goes on must have the same.
        resume (`bool`, *optional*, defaults to `False`): Whether to go on with the file where there is one. A last
            line that was cut off is dropped.

    Attributes:
        num_found (`int`): Parts that an earlier run left.
    """

    def __init__(self, path: str | Path | None, made_with: dict[str, Any], *, resume: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self._lines = None if path is None else LineFile(path)
        self.num_found = 0
        # As it is read again: a tuple is a list, a number as a key is text.
        self._made_with = json.loads(json.dumps(made_with))
        self._resume = resume
        self._parts: dict[str, Any] = {}

    def __enter__(self) -> "Journal":
        if self._lines is None:
            return self
        with ExitStack() as closing:
            closing.enter_context(self._lines)
            self._begin()
            closing.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self._lines is not None:
            self._lines.__exit__(*exc_info)

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the part of that name, making it if it is not there yet.

        Args:
            name (`str`): Its name.
            make (`Callable`): Gives it, JSON-able.

        Returns:
            What `make` gave, now or in an earlier run, as JSON has it.
        """
        if name not in self._parts:
            value = json.loads(json.dumps(make()))
            self._write({"part": name, "value": value})
            self._parts[name] = value
        return self._parts[name]

    def _begin(self) -> None:
        if not self._resume:
            check_no_journal(self.path)
        self._read()
        self._lines.begin()
        if not self._lines.has_content():
            self._write({"made_with": self._made_with})

    def _read(self) -> None:
        made_with, self._parts = _parse(self.path, self._lines.read())
        if made_with is not None:
            self._check(made_with)
        self.num_found = len(self._parts)

    def _check(self, made_with: Any) -> None:
        if changed := changes(_flat(made_with), _flat(self._made_with)):
            raise ValueError(
                f"Cannot go on with {self.path}, which is made otherwise ({changed}). Measure as before, "
                "or choose another file."
            )

    def _write(self, record: dict[str, Any]) -> None:
        if self._lines is not None:
            self._lines.append([json.dumps({**record, "crc32": _checksum(record)})])


def read_journal(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the journal at `path` was made with, and its parts by name; it may be growing meanwhile.

    Raises:
        `ValueError`: If it is damaged, or holds nothing yet.
    """
    made_with, parts = _parse(path, LineFile(path).read())
    if made_with is None:
        raise ValueError(f"{path} is empty. Remove it, or wait for the run that fills it.")
    return made_with, parts


def _parse(path: Path, lines: list[bytes]) -> tuple[Any, dict[str, Any]]:
    records = [_record(path, line, number) for number, line in enumerate(lines, start=1)]
    for number, record in enumerate(records, start=1):
        names = {"part", "value"} if number > 1 else {"made_with"}
        are_kinds = isinstance(record.get("part", ""), str) and isinstance(record.get("made_with", {}), dict)
        if set(record) != names or not are_kinds:
            raise ValueError(
                f"{path}, line {number}: it must hold {' and '.join(sorted(names))}, got {shown(record)}. Remove the "
                "file and measure again."
            )
    parts: dict[str, Any] = {}
    for number, one in enumerate(records[1:], start=2):
        if parts.setdefault(one["part"], one["value"]) != one["value"]:
            raise ValueError(
                f"{path}, line {number}: {shown(one['part'])} is there a second time with other figures. Remove "
                "the line that is wrong."
            )
    return (records[0]["made_with"] if records else None), parts


def _record(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        record = parse_json(line)
        checksum = record.pop("crc32")
    except (ValueError, KeyError, AttributeError, TypeError):
        checksum = None
    if checksum is None or checksum != _checksum(record):
        raise ValueError(
            f"{path}, line {number}: damaged, its content does not have its checksum. Remove the file and "
            "measure again."
        )
    return record


def journal_path(out: Path | None, resume: bool) -> Path | None:
    """Where the parts of a result are kept until it is whole, seen to before any work.

    Args:
        out (`Path`, *optional*): File of the result; without one, nothing is kept.
        resume (`bool`): Whether a stopped run shall go on.

    Raises:
        `ValueError`: If there is nothing to go on with, or something that would be lost.
    """
    if out is None:
        if resume:
            raise ValueError("--resume goes on with the file of --json. Name it.")
        return None
    path = out.with_name(f"{out.name}.unfinished.jsonl")
    if not resume:
        check_no_journal(path)
    elif out.exists() and not path.exists():
        raise ValueError(f"{out} is finished. Leave --resume out to measure again, or choose another file.")
    return path


def check_no_journal(path: Path) -> None:
    """Check that no earlier run left its parts at `path`.

    Raises:
        `ValueError`: If one did.
    """
    if path.exists() and path.stat().st_size:
        raise ValueError(f"{path} is what an earlier run left. Go on with --resume, or remove it to begin anew.")


def _checksum(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, those in lists by their places."""
    if isinstance(value, list) and any(isinstance(child, dict) for child in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    prefix = f"{name}." if name else ""
    return {key: one for child in value for key, one in _flat(value[child], f"{prefix}{child}").items()}
