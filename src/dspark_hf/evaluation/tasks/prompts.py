"""Prompts for measuring: the first question of each conversation of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dspark_hf.data.chat import prompt_ids
from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.conversations import as_messages
from dspark_hf.data.generating import left_pad


def load_prompts(path: str | Path, limit: int | None = None) -> list[list[dict[str, str]]]:
    """Read the messages up to and including the first user turn of every record of a JSON lines file.

    Args:
        path (`str` or `Path`): Records with `turns` or `messages`, see [`load_conversations`].
        limit (`int`, *optional*): Number of prompts to take from the top; all of them where it is absent.

    Returns:
        `list[list[dict]]`: One list of messages per prompt, in the order of the file.

    Raises:
        `ValueError`: If the file is missing, holds no prompt, or a line is not such a record (with its number).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}. Leave it out to take the whole file.")
    records = load_conversations(path)[:limit]
    return [_until_first_user(record["messages"], path, number) for number, record in enumerate(records, start=1)]


def encode_prompts(
    prompts: Sequence[Any], tokenizer: Any, *, thinking: bool | None = None, reasoning_effort: str | None = None
) -> dict[str, torch.Tensor]:
    """Turn prompts into one left-padded batch for `generate()`; see [`prompt_rows`] and [`pad_prompts`].

    Args:
        prompts (`Sequence`): Prompts, or conversations.
        tokenizer (`Any`): The target's.
        thinking (`bool`, *optional*): `enable_thinking` of the chat template.
        reasoning_effort (`str`, *optional*): `reasoning_effort` of the chat template or the encoding file.

    Returns:
        `dict`: `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).
    """
    rows = prompt_rows(prompts, tokenizer, thinking=thinking, reasoning_effort=reasoning_effort)
    return pad_prompts(rows, tokenizer)


def prompt_rows(
    prompts: Sequence[Any],
    tokenizer: Any,
    *,
    thinking: bool | None = None,
    reasoning_effort: str | None = None,
    template: bool = True,
) -> list[list[int]]:
    """Token ids of prompts.

    Each goes through the chat template, with the opening of an answer; without a template its text is taken raw.

    Args:
        prompts (`Sequence`): One row each: text, or messages as [`load_prompts`] gives them.
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        thinking, reasoning_effort (*optional*): As of [`~data.chat.prompt_ids`].
        template (`bool`, *optional*, defaults to `True`): `False` to take the text raw although there is a template:
            that of the last message.

    Raises:
        `ValueError`: If a prompt encodes to no tokens.
    """
    if template:
        form = {"thinking": thinking, "reasoning_effort": reasoning_effort}
        rows = [prompt_ids(tokenizer, prompt, **form) for prompt in prompts]
    else:
        rows = [tokenizer(as_messages(prompt)[-1]["content"])["input_ids"] for prompt in prompts]
    if not all(rows):
        raise ValueError(f"The prompt {prompts[rows.index([])]!r} encodes to no tokens. Leave it out of the data.")
    return rows


def pad_prompts(rows: Sequence[Sequence[int]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """One left-padded batch.

    Args:
        rows (`Sequence[Sequence[int]]`): Token ids of each row.
        tokenizer (`PreTrainedTokenizerBase`): Names the padding.

    Returns:
        `dict` with `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).

    Raises:
        `ValueError`: If rows need padding and the tokenizer has neither a pad nor an eos token.
    """
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad_id is None and len({len(row) for row in rows}) > 1:
        raise ValueError(
            "Prompts of different lengths share a batch, but the tokenizer has neither a pad nor an eos token. "
            "Set `tokenizer.pad_token`, or use a batch size of 1."
        )
    return left_pad(rows, 0 if pad_id is None else pad_id)


def _until_first_user(messages: list[dict[str, str]], path: str | Path, number: int) -> list[dict[str, str]]:
    for index, message in enumerate(messages):
        if message["role"] == "user":
            return messages[: index + 1]
    raise ValueError(f"{path}, record {number}: no user message to answer. Each record needs one.")
