"""Data sets of a trainer: conversations become rows of ids and masks, caches are checked."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dspark_hf.data.cache import TargetCache
from dspark_hf.data.collator import has_anchors
from dspark_hf.data.conversation_files import iterate_places
from dspark_hf.data.conversations import has_conversation
from dspark_hf.data.left_out import LeftOut
from dspark_hf.data.rows import encode_row, row_name
from dspark_hf.modeling import DraftModel

from .streams import StreamedRows


def load_rows(
    files: Sequence[str], tokenizer: Any, max_length: int, keep_special_tokens: bool = False, strict: bool = False
) -> list[dict[str, Any]]:
    """Encoded conversations of files, those with an answer of at least two tokens; the others are counted.

    Args:
        files (`Sequence[str]`): Files of conversations.
        tokenizer (`Any`): The target's.
        max_length (`int`): Tokens after which a conversation is cut.
        keep_special_tokens (`bool`, *optional*, defaults to `False`): Whether text may spell special tokens.
        strict (`bool`, *optional*, defaults to `False`): Whether one that cannot be read or encoded is an error.

    Returns:
        `list[dict]`: Rows of `input_ids` and `loss_mask`.

    Raises:
        `ValueError`: If none is left; or if `strict` and one cannot be read or encoded.
    """
    left_out = LeftOut(strict)
    places = [place for file in files for place in iterate_places(file, left_out)]
    bar = tqdm(places, desc="Encoding", unit="conversation", leave=False, disable=None)
    options = {"keep_special_tokens": keep_special_tokens, "left_out": left_out}
    with closing(bar):
        rows = [encode_row(row, tokenizer, max_length, where=place, **options) for place, row in bar]
    return _with_anchors(rows, left_out, ", ".join(map(str, files)), max_length)


def encode_rows(
    dataset: Any,
    tokenizer: Any,
    max_length: int,
    repeats: bool = False,
    keep_special_tokens: bool = False,
    strict: bool = False,
) -> Any:
    """Conversations as ids and masks, those with an answer of at least two tokens; any other dataset as it is.

    Args:
        dataset (`Any`): A dataset, several by name, or None. Without a length it is a stream, which is encoded as it
            comes.
        tokenizer (`Any`): The target's.
        max_length (`int`): Tokens after which a conversation is cut.
        repeats (`bool`, *optional*, defaults to `False`): Whether a stream is gone through over and over.
        keep_special_tokens (`bool`, *optional*, defaults to `False`): Whether text may spell special tokens.
        strict (`bool`, *optional*, defaults to `False`): Whether one that cannot be encoded is an error.

    Raises:
        `ValueError`: If no conversation has such an answer; or if `strict` and one cannot be encoded.
    """
    if isinstance(dataset, dict):
        options = {"keep_special_tokens": keep_special_tokens, "strict": strict}
        return {name: encode_rows(part, tokenizer, max_length, **options) for name, part in dataset.items()}
    if dataset is None or isinstance(dataset, StreamedRows):
        return dataset
    if not hasattr(dataset, "__len__"):
        return StreamedRows(dataset, tokenizer, max_length, repeats, keep_special_tokens, strict)
    if len(dataset) == 0 or not has_conversation(dataset[0]):
        return dataset
    left_out = LeftOut(strict)
    left_out.num_rows = len(dataset)
    options = {"keep_special_tokens": keep_special_tokens, "left_out": left_out}
    rows = [
        encode_row(row, tokenizer, max_length, where=row_name(index), **options) for index, row in enumerate(dataset)
    ]
    return _with_anchors(rows, left_out, "Dataset", max_length)


def _with_anchors(
    rows: Sequence[dict[str, Any]], left_out: LeftOut, what: str, max_length: int
) -> list[dict[str, Any]]:
    kept = [row for row in rows if has_anchors(row["loss_mask"])]
    if not kept:
        raise ValueError(
            f"None of the {left_out.num_rows} conversations in {what} has an answer of two tokens within max_length="
            f"{max_length}: {left_out.reasons()}. Give other data, or raise max_length where that is the reason."
        )
    # Every process reads all rows.
    if PartialState().is_main_process:
        left_out.tell(what)
    return kept


def check_caches(datasets: tuple[Any, ...], model: DraftModel, target: PreTrainedModel, tokenizer: Any) -> None:
    """Check that every cache among datasets was made for a drafter, its target and the tokenizer.

    Args:
        datasets (`tuple`): Datasets, each also several by name, or None.
        model ([`DraftModel`]): The drafter.
        target (`PreTrainedModel`): Its target.
        tokenizer (`Any`): That of the target.

    Raises:
        `ValueError`: If one was not.
    """
    for dataset in datasets:
        for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
            if isinstance(part, TargetCache):
                part.check_fits(model.config, target, tokenizer)
