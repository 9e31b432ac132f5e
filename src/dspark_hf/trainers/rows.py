"""Data sets of a trainer: conversations become rows of ids and masks, caches are checked."""

from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dspark_hf.data.cache import TargetCache
from dspark_hf.data.chat import encode_row, row_name
from dspark_hf.data.collator import has_anchors
from dspark_hf.data.conversations import has_conversation, load_conversations
from dspark_hf.data.special_tokens import tell_left_out
from dspark_hf.modeling import DraftModel

from .streams import StreamedRows


def load_rows(
    files: Sequence[str], tokenizer: Any, max_length: int, keep_special_tokens: bool = False
) -> list[dict[str, Any]]:
    """Encoded conversations of JSONL files, those with an answer of at least two tokens.

    Raises:
        `ValueError`: If none is left.
    """
    records = [
        (f"{file}, conversation {number},", record)
        for file in files
        for number, record in enumerate(load_conversations(file), start=1)
    ]
    rows = [
        encode_row(record, tokenizer, max_length, keep_special_tokens, where=where)
        for where, record in tqdm(records, desc="Encoding", unit="conversation", leave=False)
    ]
    tell_left_out(sum(not row["input_ids"] for row in rows), len(rows), ", ".join(map(str, files)))
    rows = [row for row in rows if has_anchors(row["loss_mask"])]
    if not rows:
        raise ValueError(
            f"None of the {len(records)} conversations in {list(files)} has an answer of two tokens within "
            f"max_length={max_length}; raise it, or give other data."
        )
    return rows


def encode_rows(
    dataset: Any, tokenizer: Any, max_length: int, repeats: bool = False, keep_special_tokens: bool = False
) -> Any:
    """Conversations as ids and masks, those with an answer of at least two tokens; any other dataset as it is. Several
    come by name.

    Without a length it is a stream, which is encoded as it comes, and over and over where it `repeats`.

    Raises:
        `ValueError`: If no conversation has such an answer.
    """
    if isinstance(dataset, dict):
        return {
            name: encode_rows(part, tokenizer, max_length, keep_special_tokens=keep_special_tokens)
            for name, part in dataset.items()
        }
    if dataset is None or isinstance(dataset, StreamedRows):
        return dataset
    if not hasattr(dataset, "__len__"):
        return StreamedRows(dataset, tokenizer, max_length, repeats, keep_special_tokens)
    if len(dataset) == 0 or not has_conversation(dataset[0]):
        return dataset
    encoded = [
        encode_row(row, tokenizer, max_length, keep_special_tokens, where=row_name(index))
        for index, row in enumerate(dataset)
    ]
    tell_left_out(sum(not row["input_ids"] for row in encoded), len(encoded), "Dataset")
    rows = [row for row in encoded if has_anchors(row["loss_mask"])]
    if not rows:
        raise ValueError(
            f"None of the {len(dataset)} conversations has an answer of two tokens within max_length={max_length}; "
            "raise it, or give other data."
        )
    return rows


def check_caches(datasets: tuple[Any, ...], model: DraftModel, target: PreTrainedModel, tokenizer: Any) -> None:
    """Raise `ValueError` unless every cache among the datasets was made for this drafter, target and tokenizer."""
    for dataset in datasets:
        for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
            if isinstance(part, TargetCache):
                part.check_fits(model.config, target, tokenizer)
