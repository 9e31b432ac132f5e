"""What a message quotes of a file of others: as much as can be read, whatever its length."""

from typing import Any

_MOST = 80


def cut(text: str) -> str:
    """Text at a length that fits a message.

    Args:
        text (`str`): The text.

    Returns:
        `str`: The same, or its first 80 characters and three dots.
    """
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def cut_middle(text: str) -> str:
    """A library's words at a length that fits a message; they may quote any value whole.

    Args:
        text (`str`): Its words.

    Returns:
        `str`: The same, or their first 500 characters, where the reason begins, and their last 200.
    """
    return text if len(text) <= 700 else f"{text[:500]} [...] {text[-200:]}"


def shown(value: Any) -> str:
    """A value as Python writes it, at a length that fits a message.

    Args:
        value: Anything; a number of more digits than Python writes is told as such.

    Returns:
        `str`.
    """
    try:
        return cut(repr(value))
    except ValueError:
        return f"({type(value).__name__} too large to write)"
