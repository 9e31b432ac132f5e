"""Prompts to be answered: from a file, or from a dataset of the Hub or in a folder."""

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from dspark_hf.data.conversations import load_conversations, messages_of

_PARQUET = ".parquet"


def load_prompts(
    source: str | os.PathLike,
    *,
    split: str = "train",
    limit: int | None = None,
    streaming: bool = True,
    set_aside: Callable[[Any, Exception], None] | None = None,
) -> Iterator[list[dict]]:
    """Yield conversations to be answered, answers that the source holds included.

    Args:
        source (`str` or `os.PathLike`): A JSONL file ([`~data.conversations.load_conversations`]), a Parquet file, or
            what `datasets.load_dataset` takes: a dataset of the Hub such as `mlabonne/open-perfectblend`, or a folder.
            Rows are as [`~data.conversations.messages_of`] reads them.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset.
        limit (`int`, *optional*): Take so many from the top.
        streaming (`bool`, *optional*, defaults to `True`): Read a dataset as it arrives, without loading it whole.
        set_aside (`Callable`, *optional*): Called with a dataset's row that has no messages, and the reason; without
            it such a row is an error.

    Yields:
        `list[dict]`: Messages.

    Raises:
        `ValueError`: If the source cannot be read, or a row has no messages.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}. Leave it out for all prompts.")
    if os.path.isfile(source) and not os.fspath(source).endswith(_PARQUET):
        conversations = (record["messages"] for record in load_conversations(source))
    else:
        conversations = _read_rows(_dataset_rows(source, split, streaming), source, set_aside)
    yield from islice(conversations, limit)


def _dataset_rows(source: str | os.PathLike, split: str, streaming: bool) -> Iterator[Mapping[str, Any]]:
    import datasets

    source = os.fspath(source)
    place = {"path": source}
    if os.path.isfile(source):
        place = {"path": "parquet", "data_files": {split: source}}
    try:
        yield from datasets.load_dataset(**place, split=split, streaming=streaming)
    # What it raises on a name that does not exist depends on where it looked.
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Cannot read prompts from {source!r}, split {split!r}: {str(error).rstrip('.')}. Give a JSONL or Parquet "
            "file, a folder of such files, or the name of a dataset on the Hub."
        ) from error


def _read_rows(
    rows: Iterator[Mapping[str, Any]],
    source: str | os.PathLike,
    set_aside: Callable[[Any, Exception], None] | None,
) -> Iterator[list[dict]]:
    for number, row in enumerate(rows):
        try:
            messages = messages_of(row)
        except ValueError as error:
            error = ValueError(f"{os.fspath(source)}, row {number}: {error}")
            if set_aside is None:
                raise error from None
            set_aside(row, error)
        else:
            yield messages
