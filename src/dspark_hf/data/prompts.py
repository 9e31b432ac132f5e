"""Prompts to be answered: from a file, or from a dataset of the Hub or in a folder."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dspark_hf.data.conversations import load_conversations, messages_of

_PARQUET = ".parquet"


def iterate_prompts(
    source: str | os.PathLike, set_aside: Callable[[Any, Exception], None], *, split: str = "train"
) -> Iterator[list[dict]]:
    """Yield conversations to be answered, answers that the source holds included.

    Args:
        source (`str` or `os.PathLike`): A JSONL file ([`~data.conversations.load_conversations`]), a Parquet file,
            or what `datasets.load_dataset` takes, which is streamed: a dataset of the Hub such as
            `mlabonne/open-perfectblend`, or a folder. Rows are as [`~data.conversations.messages_of`] reads them.
        set_aside (`Callable`): Called with a dataset's row that has no messages, and the reason.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset.

    Yields:
        `list[dict]`: Messages.

    Raises:
        `ValueError`: If the source cannot be read, or a line of a JSONL file has no messages.
    """
    if os.path.isfile(source) and not os.fspath(source).endswith(_PARQUET):
        yield from (record["messages"] for record in load_conversations(source))
        return
    for number, row in enumerate(_dataset_rows(os.fspath(source), split)):
        try:
            messages = messages_of(row)
        except ValueError as error:
            set_aside(row, ValueError(f"{os.fspath(source)}, row {number}: {error}"))
        else:
            yield messages


def _dataset_rows(source: str, split: str) -> Iterator[Mapping[str, Any]]:
    import datasets

    place = {"path": source}
    if os.path.isfile(source):
        place = {"path": "parquet", "data_files": {split: source}}
    try:
        yield from datasets.load_dataset(**place, split=split, streaming=True)
    # What it raises on a name that does not exist depends on where it looked.
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Cannot read prompts from {source!r}, split {split!r}: {str(error).rstrip('.')}. Give a JSONL or Parquet "
            "file, a folder of such files, or the name of a dataset on the Hub."
        ) from error
