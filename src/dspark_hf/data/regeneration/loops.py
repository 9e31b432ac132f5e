"""Answers that end in a loop: small targets fall into saying one thing over and over, which teaches little."""

from collections.abc import Mapping
from typing import Any

_MIN_TIMES = 3
_MIN_CHARS = 60


def ends_in_loop(text: str) -> bool:
    """Whether the last 60 characters of a `text`, or more, are one piece three times or more, the last maybe cut."""
    backwards = text.rstrip()[::-1]
    # Of each beginning of `backwards`, the longest proper part that both begins and ends it (Knuth, Morris and Pratt):
    # what such a beginning is longer by is its period.
    borders, border = [0] * (len(backwards) + 1), 0
    for length in range(2, len(backwards) + 1):
        char = backwards[length - 1]
        while border and backwards[border] != char:
            border = borders[border]
        border += backwards[border] == char
        borders[length] = border
        if length >= _MIN_CHARS and length >= _MIN_TIMES * (length - border):
            return True
    return False


def has_loop(record: Mapping[str, Any]) -> bool:
    """Whether an answer of a `record`'s `messages` ends in a loop."""
    return any(ends_in_loop(message["content"]) for message in record["messages"] if message["role"] == "assistant")
