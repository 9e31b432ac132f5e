"""Conversations as files and data sets hold them: rows become lists of messages, whatever their columns are called."""

import gzip
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from typing import Any

from dspark_hf.files import open_regular, parse_json

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_COLUMNS = ("messages", "conversations", "turns", "prompt")
_GZIP = b"\x1f\x8b"
# Bytes of a line: a thousand times a long conversation, and far from what a machine's memory holds.
_LONGEST = 2**26


def load_conversations(path: str | os.PathLike) -> list[dict]:
    """Read conversations from a JSONL file; see [`iterate_conversations`]."""
    return list(iterate_conversations(path))


def iterate_conversations(path: str | os.PathLike) -> Iterator[dict]:
    """Read conversations from a JSONL file, which may be compressed (gzip), line by line.

    A line is an object with what [`messages_of`] reads. An optional `complete: false` says that the last answer was
    cut off by a length limit, and an optional `thinking` whether the chat template had `enable_thinking` on.

    Args:
        path (`str` or `os.PathLike`): The file. Empty lines are skipped.

    Returns:
        `Iterator[dict]`: `{"messages": list[dict], "complete": bool}` per line, with `thinking` where the line has it.

    Raises:
        `ValueError`: If the file is absent, empty or no regular file, or a line is not such an object or has more than
            64 MiB; the message has its number.
    """
    is_empty = True
    try:
        with open_regular(path) as file:
            for number, line in enumerate(_lines(file), start=1):
                if len(line) > _LONGEST:
                    raise ValueError(
                        f"{os.fspath(path)}, line {number}: A line may have {_LONGEST >> 20} MiB. Write one "
                        "conversation a line."
                    )
                # Editors on Windows begin a file with a mark that is no text.
                text = line.decode("utf-8-sig")
                if text.strip():
                    is_empty = False
                    try:
                        record = _parse_record(text)
                    except ValueError as error:
                        raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error
                    yield record
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read conversations from {os.fspath(path)!r}: {error}. Give a JSONL file.") from error
    if is_empty:
        raise ValueError(f"{os.fspath(path)} holds no conversations. Give a JSONL file with one object a line.")


def _lines(file: BufferedReader) -> Iterator[bytes]:
    content = gzip.GzipFile(fileobj=file) if file.peek(len(_GZIP)).startswith(_GZIP) else file
    # One byte more than a line may have shows that it has too many.
    yield from iter(lambda: content.readline(_LONGEST + 1), b"")


def has_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a data set's row is a conversation, as [`messages_of`] reads it, rather than ids and mask."""
    return "messages" in row or ("input_ids" not in row and any(name in row for name in _COLUMNS))


def messages_of(row: Mapping[str, Any]) -> list[dict]:
    """The messages of a row with `messages` (`role`, `content`), `conversations` (`from`, `value`), `turns` (what the
    user says, turn by turn) or `prompt` (one such turn).

    Raises:
        `ValueError`: If the row has none of these, or no messages in it.
    """
    present = [name for name in _COLUMNS if name in row]
    if not present:
        raise ValueError(f"Expected one of {', '.join(map(repr, _COLUMNS))}, got {sorted(row)}.")
    # Data sets of several kinds of rows fill up the columns that a row does not have.
    column = next((name for name in present if row[name]), present[0])
    messages = row[column]
    if column in ("turns", "prompt"):
        messages = as_messages(messages)
    elif isinstance(messages, (list, tuple)) and all(isinstance(message, Mapping) for message in messages):
        messages = [_as_message(message) for message in messages]
    check_messages(messages)
    return list(messages)


def as_messages(conversation: str | Sequence[str] | Sequence[dict]) -> list[dict]:
    """One user turn, or several, or messages, as messages.

    Raises:
        `ValueError`: If it is none of these.
    """
    turns = [conversation] if isinstance(conversation, str) else conversation
    if not isinstance(turns, (list, tuple)):
        raise ValueError(f"Expected text, a list of turns or a list of messages, got {type(turns).__name__}.")
    return [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]


def check_messages(messages: Sequence[dict]) -> None:
    """Raise `ValueError` unless `messages` is a non-empty list of `{"role", "content"}` with known roles."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"Expected a non-empty list of messages, got {messages!r:.80}.")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"Expected each message to be {{'role': ..., 'content': text}}, got {message!r:.80}.")
        if message.get("role") not in _ROLES:
            raise ValueError(f"Expected a role out of {_ROLES}, got {message.get('role')!r}.")
        if not _is_unicode(message["content"]):
            raise ValueError(f"Expected text, got half of a surrogate pair in {message['content']!r:.80}.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_message(message: Mapping[str, Any]) -> dict[str, Any]:
    # Data sets fill up messages with absent keys.
    given = {key: value for key, value in message.items() if value is not None}
    if "role" not in given and "from" in given:
        role = given.pop("from")
        role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
        given = {"role": role, "content": given.pop("value", given.get("content")), **given}
    # An absent text is shown as it was given.
    return given if "content" in given or "content" not in message else {**given, "content": None}


def _parse_record(line: str) -> dict:
    record = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError(f"Expected an object with one of {', '.join(map(repr, _COLUMNS))}, got {line.strip()!r:.80}.")
    messages = messages_of(record)
    complete = record.get("complete", True)
    if not isinstance(complete, bool):
        raise ValueError(f"Expected 'complete' to be true or false, got {complete!r}.")
    thinking = record.get("thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise ValueError(f"Expected 'thinking' to be true, false or absent, got {thinking!r}.")
    return {"messages": messages, "complete": complete, **({} if thinking is None else {"thinking": thinking})}
