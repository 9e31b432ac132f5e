"""Prompts to be answered: from a JSONL file, or from a dataset of the Hub or in a folder."""

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from dspark_hf.data.chat import check_messages, load_conversations

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_COLUMNS = ("messages", "conversations", "turns", "prompt")


def load_prompts(
    source: str | os.PathLike, *, split: str = "train", limit: int | None = None, streaming: bool = True
) -> Iterator[list[dict]]:
    """Yield conversations to be answered, answers that the source holds included.

    Args:
        source (`str` or `os.PathLike`): A JSONL file ([`~data.chat.load_conversations`]), or what
            `datasets.load_dataset` takes: a dataset of the Hub such as `mlabonne/open-perfectblend`, or a folder. Rows
            have `messages` (`role`, `content`), `conversations` (`from`, `value`), `turns` (user turns) or `prompt`.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset.
        limit (`int`, *optional*): Take so many from the top.
        streaming (`bool`, *optional*, defaults to `True`): Read a dataset as it arrives, without loading it whole.

    Yields:
        `list[dict]`: Messages.

    Raises:
        `ValueError`: If the source cannot be read, or its rows have none of these columns.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}. Leave it out for all prompts.")
    if os.path.isfile(source):
        conversations = (record["messages"] for record in load_conversations(source))
    else:
        conversations = (_to_messages(row, source) for row in _dataset_rows(source, split, streaming))
    yield from islice(conversations, limit)


def _dataset_rows(source: str | os.PathLike, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        yield from datasets.load_dataset(os.fspath(source), split=split, streaming=streaming)
    # What it raises on a name that does not exist depends on where it looked.
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Cannot read prompts from {os.fspath(source)!r}, split {split!r}: {error} Give a JSONL file, a folder, "
            "or the name of a dataset on the Hub."
        ) from error


def _to_messages(row: dict[str, Any], source: str | os.PathLike) -> list[dict]:
    column = next((name for name in _COLUMNS if row.get(name)), None)
    if column is None:
        raise ValueError(f"Expected rows of {os.fspath(source)!r} to have one of {_COLUMNS}, got {sorted(row)}.")
    value = row[column]
    if column == "conversations":
        value = [{"role": _role(turn), "content": turn.get("value", turn.get("content"))} for turn in value]
    elif isinstance(value, str):
        value = [{"role": "user", "content": value}]
    elif value and isinstance(value[0], str):
        value = [{"role": "user", "content": turn} for turn in value]
    # Datasets fill up messages with absent keys.
    messages = [{key: item for key, item in message.items() if item is not None} for message in value]
    check_messages(messages)
    return messages


def _role(turn: dict[str, Any]) -> str:
    role = turn.get("from", turn.get("role"))
    return _SHAREGPT_ROLES.get(role, role)
