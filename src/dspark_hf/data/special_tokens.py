"""Text that spells special tokens: a tokenizer makes real ones of it, which can end a turn and forge others."""

from collections.abc import Mapping, Sequence
from typing import Any

# Shorter ones, such as a padding token "!", are ordinary text as well.
_SHORTEST = 3


def spelled_token(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The first special token of a `tokenizer` that the text of `messages` spells out; `None` where there is none.

    Special are the tokens that the tokenizer marks so: turns, ends, padding. Tokens that models write into their text,
    such as `<think>`, are not.
    """
    added = tokenizer.added_tokens_decoder.values()
    tokens = [token.content for token in added if token.special and len(token.content) >= _SHORTEST]
    texts = _texts(messages)
    return next((token for token in tokens for text in texts if token in text), None)


def _texts(value: Any) -> list[str]:
    """Every text in a message, those of its thoughts and tool calls included."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in _texts(part)]
