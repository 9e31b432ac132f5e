"""Prompts from JSON lines: conversations in, token ids out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """What the target is asked: the messages up to and including the first user turn.

    Args:
        messages (`list[dict[str, str]]`): Messages with `role` and `content`, the last one by the user.
    """

    messages: list[dict[str, str]]

    @property
    def text(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]


def load_prompts(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """Read the first prompt of every record of a JSON lines file.

    A record holds either `turns`, a list of user messages of which the first is taken, or `messages`, a conversation
    in chat form that is cut after its first user message. Blank lines are passed over.

    Args:
        path (`str` or `Path`): The file.
        limit (`int`, *optional*): Number of prompts to read from the top; all of them where it is absent.

    Returns:
        `list[Prompt]`, in the order of the file.

    Raises:
        `ValueError`: If the file is missing, holds no prompt, or a line is not such a record (with its number).
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}. Leave it out to read the whole file.")
    if not path.is_file():
        raise ValueError(f"No data file at {path}. Give a JSON lines file whose records have `turns` or `messages`.")
    prompts = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if len(prompts) == limit:
                break
            if line.strip():
                prompts.append(_parse(line, f"{path}, line {number}"))
    if not prompts:
        raise ValueError(f"{path} holds no prompts. Each line should be a record with `turns` or `messages`.")
    return prompts


def encode_prompts(prompts: list[Prompt], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Turn prompts into one left-padded batch for `generate()`.

    Each goes through the chat template with the opening of an answer; without a template its bare text is encoded.

    Args:
        prompts (`list[Prompt]`): One row each.
        tokenizer (`PreTrainedTokenizerBase`): The target's.

    Returns:
        `dict` with `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).

    Raises:
        `ValueError`: If rows of different lengths need padding and the tokenizer has no pad or eos token, or if a
            prompt encodes to no tokens at all.
    """
    rows = [_encode(prompt, tokenizer) for prompt in prompts]
    if not all(rows):
        empty = rows.index([])
        raise ValueError(f"The prompt {prompts[empty].text!r} encodes to no tokens. Remove it from the data.")
    lengths = {len(row) for row in rows}
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if len(lengths) > 1 and pad_id is None:
        raise ValueError(
            "Prompts of different lengths share a batch, but the tokenizer has neither a pad nor an eos token. "
            "Set `tokenizer.pad_token` or use a batch size of 1."
        )
    width = max(lengths)
    padding = [width - len(row) for row in rows]
    return {
        "input_ids": torch.tensor([[pad_id] * pad + row for pad, row in zip(padding, rows, strict=True)]),
        "attention_mask": torch.tensor([[0] * pad + [1] * len(row) for pad, row in zip(padding, rows, strict=True)]),
    }


def _encode(prompt: Prompt, tokenizer: Any) -> list[int]:
    if tokenizer.chat_template is None:
        return tokenizer(prompt.text)["input_ids"]
    encoded = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def _parse(line: str, where: str) -> Prompt:
    """Read one record; `where` opens the error messages."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error}). Each line should be one record.") from None
    if isinstance(record, dict) and "turns" in record:
        turns = record["turns"]
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
            raise ValueError(f"{where}: `turns` should be a list of user messages with at least one, got {turns!r}.")
        return Prompt([{"role": "user", "content": turns[0]}])
    if isinstance(record, dict) and "messages" in record:
        return Prompt(_cut_after_first_user(record["messages"], where))
    fields = sorted(record) if isinstance(record, dict) else type(record).__name__
    raise ValueError(f"{where}: a record needs `turns` or `messages`, got {fields}.")


def _cut_after_first_user(messages: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(messages, list):
        raise ValueError(f"{where}: `messages` should be a list, got {type(messages).__name__}.")
    kept = []
    for message in messages:
        valid = isinstance(message, dict) and message.get("role") in _ROLES
        if not valid or not isinstance(message.get("content"), str):
            raise ValueError(
                f"{where}: each message needs a `role` of {', '.join(_ROLES)} and a `content` string, got {message!r}."
            )
        kept.append({"role": message["role"], "content": message["content"]})
        if message["role"] == "user":
            return kept
    raise ValueError(f"{where}: `messages` holds no user message to answer.")
