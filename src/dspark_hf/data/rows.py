"""Rows of a data set as ids and mask, and what of them is left out."""

from collections.abc import Mapping
from typing import Any

from dspark_hf.data.chat import encode_conversation
from dspark_hf.data.collator import has_anchors
from dspark_hf.data.conversations import conversation_of, has_conversation
from dspark_hf.data.left_out import NO_ANSWER, SPELLED, TOO_LONG, LeftOut
from dspark_hf.data.special_tokens import spelled_token


def encode_row(
    row: Mapping[str, Any],
    tokenizer=None,
    max_length: int | None = None,
    keep_special_tokens: bool = False,
    *,
    where: str = "A row",
    left_out: LeftOut | None = None,
) -> dict[str, Any]:
    """A data set's row as ids and mask: a conversation is encoded, ids and mask are cut to `max_length`.

    Args:
        row (`Mapping`): A conversation as [`~data.conversations.conversation_of`] reads it, or `input_ids` and
            `loss_mask`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Needed for conversations.
        max_length (`int`, *optional*): Keep at most this many tokens, from the start.
        keep_special_tokens (`bool`, *optional*, defaults to `False`): Whether a conversation whose text spells special
            tokens of the tokenizer is taken all the same; otherwise it has no tokens.
        where (`str`, *optional*): Which row it is, for messages.
        left_out ([`~data.left_out.LeftOut`], *optional*): Counts conversations that nothing is learned from; those
            that cannot be encoded have no tokens, unless it is strict, as it is by default.

    Returns:
        `dict`: `input_ids` and `loss_mask`.

    Raises:
        `ValueError`: If the row has neither, or there is no tokenizer; or it is a conversation that cannot be encoded
            and `left_out` does not take it.
    """
    if has_conversation(row):
        left_out = LeftOut(strict=True) if left_out is None else left_out
        if tokenizer is None:
            raise ValueError(
                "The dataset holds conversations; give their tokenizer too (a trainer's processing_class)."
            )
        try:
            given = conversation_of(row)
            if not keep_special_tokens and spelled_token(tokenizer, given["messages"]) is not None:
                left_out.skip(SPELLED)
                return {"input_ids": [], "loss_mask": []}
            encoded = encode_conversation(tokenizer, **given)
        except ValueError as error:
            left_out.refuse(where, error)
            return {"input_ids": [], "loss_mask": []}
        cut = {name: values[:max_length] for name, values in encoded.items()}
        if not has_anchors(cut["loss_mask"]):
            left_out.skip(TOO_LONG if has_anchors(encoded["loss_mask"]) else NO_ANSWER)
        return cut
    if "input_ids" not in row or "loss_mask" not in row:
        raise ValueError(f"{where} needs 'messages', or 'input_ids' and 'loss_mask', got {sorted(row)}.")
    return {name: row[name][:max_length] for name in ("input_ids", "loss_mask")}


def row_name(index: int) -> str:
    """How messages call the row of a data set at an `index`, from 0."""
    return f"Row {index} (from 0)"
