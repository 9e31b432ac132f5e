"""Data sets of a trainer: conversations become rows of ids and masks, caches are checked."""

from collections.abc import Sequence
from typing import Any

from datasets import IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dspark_hf.data.cache import TargetCache
from dspark_hf.data.chat import encode_row
from dspark_hf.data.conversations import load_conversations
from dspark_hf.modeling import DraftModel


def load_rows(files: Sequence[str], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Encoded conversations of JSONL files, those whose answers have at least two tokens.

    Raises:
        `ValueError`: If none is left.
    """
    records = [record for file in files for record in load_conversations(file)]
    rows = [
        encode_row(record, tokenizer, max_length)
        for record in tqdm(records, desc="Encoding", unit="conversation", leave=False)
    ]
    rows = [row for row in rows if sum(row["loss_mask"]) > 1]
    if not rows:
        raise ValueError(
            f"None of the {len(records)} conversations in {list(files)} has an answer of two tokens within "
            f"max_length={max_length}; raise it, or give other data."
        )
    return rows


def encode_rows(dataset: Any, tokenizer: Any, max_length: int) -> Any:
    """Rows of conversations as ids and masks, streamed ones as they come; any other dataset as it is. Several come by
    name.

    Raises:
        `ValueError`: If no conversation has an answer.
    """
    if isinstance(dataset, dict):
        return {name: encode_rows(part, tokenizer, max_length) for name, part in dataset.items()}
    if isinstance(dataset, IterableDataset):
        columns = list(next(iter(dataset), {}))
        if "messages" not in columns:
            return dataset
        encoded = dataset.map(lambda row: encode_row(row, tokenizer, max_length), remove_columns=columns)
        return encoded.filter(lambda row: any(row["loss_mask"]))
    if not hasattr(dataset, "__len__") or len(dataset) == 0 or "messages" not in dataset[0]:
        return dataset
    rows = [row for row in (encode_row(row, tokenizer, max_length) for row in dataset) if any(row["loss_mask"])]
    if not rows:
        raise ValueError(
            f"None of the {len(dataset)} conversations has an answer within max_length={max_length}; raise it, or "
            "give other data."
        )
    return rows


def check_caches(datasets: tuple[Any, ...], model: DraftModel, target: PreTrainedModel, tokenizer: Any) -> None:
    """Raise `ValueError` unless every cache among the datasets was made for this drafter, target and tokenizer."""
    for dataset in datasets:
        for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
            if isinstance(part, TargetCache):
                part.check_fits(model.config, target, tokenizer)
