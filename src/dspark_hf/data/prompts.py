"""Prompts to be answered: from a file, or from a dataset of the Hub or in a folder."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dspark_hf.data.conversation_files import iterate_places
from dspark_hf.data.conversations import conversation_of
from dspark_hf.data.left_out import LeftOut


def iterate_prompts(
    source: str | os.PathLike, set_aside: Callable[[Any, Exception], None], *, split: str = "train"
) -> Iterator[list[dict]]:
    """Yield conversations to be answered, answers that the source holds included.

    Args:
        source (`str` or `os.PathLike`): A file ([`~data.conversation_files.iterate_conversations`]), or what
            `datasets.load_dataset` takes, which is streamed: a dataset of the Hub such as
            `mlabonne/open-perfectblend`, or a folder. Rows are as [`~data.conversations.conversation_of`] reads them.
        set_aside (`Callable`): Called with a row that has no messages, or of a file with its place, and the reason.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset.

    Yields:
        `list[dict]`: Messages.

    Raises:
        `ValueError`: If the source cannot be read.
    """
    if os.path.isfile(source):
        yield from (given["messages"] for _, given in iterate_places(source, _SetAside(set_aside)))
        return
    for number, row in enumerate(_dataset_rows(os.fspath(source), split)):
        try:
            messages = conversation_of(row)["messages"]
        except ValueError as error:
            set_aside(row, ValueError(f"{os.fspath(source)}, row {number}: {error}"))
        else:
            yield messages


class _SetAside(LeftOut):
    """Hands on what is no conversation."""

    def __init__(self, set_aside: Callable[[Any, Exception], None]):
        super().__init__()
        self.set_aside = set_aside

    def refuse(self, place: str, error: Exception) -> None:
        self.set_aside(place, ValueError(f"{place}: {error}"))


def _dataset_rows(source: str, split: str) -> Iterator[Mapping[str, Any]]:
    import datasets

    try:
        yield from datasets.load_dataset(source, split=split, streaming=True)
    # What it raises on a name that does not exist depends on where it looked.
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Cannot read prompts from {source!r}, split {split!r}: {str(error).rstrip('.')}. Give a JSONL or Parquet "
            "file, a folder of such files, or the name of a dataset on the Hub."
        ) from error
