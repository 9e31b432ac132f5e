"""Files of conversations: JSON lines or a JSON array, perhaps compressed, or Parquet."""

import gzip
import os
import zlib
from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from json import JSONDecodeError
from typing import Any

from dspark_hf.data.conversations import conversation_of
from dspark_hf.data.json_array import array_elements
from dspark_hf.data.left_out import LeftOut
from dspark_hf.data.parquet import parquet_rows
from dspark_hf.files import open_regular, parse_json
from dspark_hf.messages import shown

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
# Bytes of a line: a thousand times a long conversation, and far from what a machine's memory holds.
_LONGEST = 2**26


def load_conversations(path: str | os.PathLike) -> list[dict]:
    """Read all conversations of the file at `path`; see [`iterate_conversations`]."""
    return list(iterate_conversations(path))


def iterate_conversations(path: str | os.PathLike) -> Iterator[dict]:
    """Read conversations from a file one by one.

    Args:
        path (`str` or `os.PathLike`): JSON lines (empty lines are skipped), a JSON array, either perhaps compressed
            (gzip), or Parquet. Lines, elements and rows have what [`~data.conversations.conversation_of`] reads.

    Returns:
        `Iterator[dict]`: What [`~data.conversations.conversation_of`] gives.

    Raises:
        `ValueError`: If the file is absent, empty or no regular file, or a line, element or row is no such
            conversation or has more than 64 MiB; the message has its number.
    """
    return (conversation for _, conversation in iterate_places(path))


def iterate_places(path: str | os.PathLike, left_out: LeftOut | None = None) -> Iterator[tuple[str, dict]]:
    """Read conversations from a file, each with where it stands, such as `text.jsonl, line 3`.

    Args:
        path (`str` or `os.PathLike`): As of [`iterate_conversations`].
        left_out ([`LeftOut`], *optional*): Takes what is no conversation, unless it is strict.

    Raises:
        `ValueError`: As of [`iterate_conversations`], for what `left_out` does not take.
    """
    left_out = LeftOut(strict=True) if left_out is None else left_out
    is_empty = True
    for place, read in _rows(path):
        is_empty = False
        left_out.num_rows += 1
        try:
            row = read()
            if not isinstance(row, dict):
                raise ValueError(f"Expected an object with 'messages' or the like, got {shown(row)}.")
            conversation = conversation_of(row)
        except ValueError as error:
            left_out.refuse(place, error)
        else:
            yield place, conversation
    if is_empty:
        raise ValueError(f"{os.fspath(path)} holds no conversations. Give a JSONL file with one object a line.")


def iterate_rows(path: str | os.PathLike) -> Iterator[tuple[str, dict]]:
    """Read a file's rows as they are, each with where it stands: for what a row has besides its conversation.

    Args:
        path (`str` or `os.PathLike`): As of [`iterate_conversations`].

    Raises:
        `ValueError`: If the file is absent, empty or no regular file, or a row is no object; the message has its
            number.
    """
    is_empty = True
    for place, read in _rows(path):
        is_empty = False
        try:
            row = read()
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: Expected an object with 'turns' or the like, got {shown(row)}.")
        yield place, row
    if is_empty:
        raise ValueError(f"{os.fspath(path)} holds no conversations. Give a JSONL file with one object a line.")


def _rows(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """Each row's place, and a function that reads it."""
    name = os.fspath(path)
    try:
        with open_regular(path) as file:
            if file.peek(len(_PARQUET)).startswith(_PARQUET):
                for number, row in enumerate(parquet_rows(path), start=1):
                    yield f"{name}, row {number}", lambda row=row: row
                return
            lines = enumerate(_lines(file), start=1)
            # The first line with content tells what the file is.
            first = next(((number, line) for number, line in lines if line.strip()), None)
            if first is None:
                return
            if first[1].lstrip().startswith(b"["):
                pieces = (line for _, line in chain([first], lines))
                for number, element in enumerate(array_elements(pieces, name), start=1):
                    yield f"{name}, element {number}", lambda element=element: element
                return
            for number, line in chain([first], lines):
                if line.strip():
                    yield f"{name}, line {number}", lambda line=line: _parse_line(line)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read conversations from {name!r}: {error}. Give a JSONL file.") from error


def _lines(file: BufferedReader) -> Iterator[bytes]:
    content = gzip.GzipFile(fileobj=file) if file.peek(len(_GZIP)).startswith(_GZIP) else file
    # One byte more than a line may have shows that it has too many.
    is_first = True
    for line in iter(lambda: content.readline(_LONGEST + 1), b""):
        # Editors on Windows begin a file with a mark that is no text.
        yield line.removeprefix(b"\xef\xbb\xbf") if is_first else line
        is_first = False


def _parse_line(line: bytes) -> Any:
    if len(line) > _LONGEST:
        raise ValueError(f"A line may have {_LONGEST >> 20} MiB. Write one conversation a line.")
    try:
        return parse_json(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"It is no text in UTF-8: {error}.") from error
    except JSONDecodeError as error:
        # Its own count of lines, within this one, would mislead.
        raise ValueError(f"It is no JSON: {error.msg}, column {error.colno}.") from error
