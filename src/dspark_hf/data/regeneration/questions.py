"""What a target is asked: conversations without their answers, each prompt once."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.conversations import check_messages
from dspark_hf.data.prompts import iterate_prompts
from dspark_hf.messages import shown


def unanswered(
    prompts: str | os.PathLike | Iterable[Sequence[dict]],
    seen: set[str],
    set_aside: Callable[[Any, Exception], None],
    *,
    split: str = "train",
    limit: int | None = None,
) -> Iterator[list[dict]]:
    """Yield conversations without their answers, leaving out those whose first prompt was seen.

    Args:
        prompts (`str`, `os.PathLike` or iterable): As of [`~data.prompts.iterate_prompts`], or messages lists.
        seen (`set[str]`): First prompts to leave out; those that are yielded are added.
        set_aside (`Callable`): Called with what is no conversation, or asks nothing, and the reason.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset.
        limit (`int`, *optional*): Take so many from the top.
    """
    if isinstance(prompts, (str, os.PathLike)):
        prompts = iterate_prompts(prompts, set_aside, split=split)
    for messages in islice(prompts, limit):
        try:
            kept = _questions(messages)
        except ValueError as error:
            set_aside(messages, error)
            continue
        prompt = next(message["content"] for message in kept if message["role"] == "user")
        if prompt not in seen:
            seen.add(prompt)
            yield kept


def _questions(messages: Sequence[dict]) -> list[dict]:
    check_messages(messages)
    # Data sets fill up absent system messages with empty ones.
    kept = [m for m in messages if m["role"] == "user" or (m["role"] == "system" and m["content"].strip())]
    questions = [message["content"] for message in kept if message["role"] == "user"]
    if not questions:
        raise ValueError(f"Expected a user message in each conversation, got {shown(messages)}.")
    if not all(question.strip() for question in questions):
        raise ValueError(f"Expected text in each user message, got {shown(messages)}.")
    return kept


def first_prompts(records: Iterable[dict]) -> set[str]:
    """Collect the first user message of each of `records`: what makes two conversations the same."""
    users = ([m["content"] for m in record["messages"] if m["role"] == "user"] for record in records)
    return {contents[0] for contents in users if contents}


def prompts_in(path: str | os.PathLike | None) -> set[str]:
    """The first prompts of the JSONL file of conversations at `path`; none without a file."""
    return set() if path is None else first_prompts(load_conversations(path))


def source_name(source: Any) -> str | None:
    """What provenance calls a `source`, a file or data set; None for what has no name."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
