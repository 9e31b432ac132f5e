"""What a card quotes, so that it stays text: no heading, link, HTML or table comes out of a name or a command."""

import re
from typing import Any

# Underscores inside words mean nothing in markdown.
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is markdown already, and goes into a card as it is."""


def quoted(value: Any) -> Markdown:
    """A `value` as one line of plain text; markdown stays as it is."""
    if isinstance(value, Markdown):
        return value
    text = _SPECIAL.sub(r"\\\g<0>", " ".join(str(value).split()))
    return Markdown(re.sub("[&<>]", lambda match: _HTML[match[0]], text))


def code(text: Any) -> Markdown:
    """A `text` as code inside a line."""
    text = " ".join(str(text).split())
    ticks = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{ticks}{space}{text}{space}{ticks}")


def fenced(text: str, language: str) -> Markdown:
    """A `text` as lines of code in a `language`."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def table(columns: list[Any], rows: list[list[Any]]) -> Markdown:
    """A table of `columns` and `rows`; cells are quoted, and none ends early."""
    lines = [columns, [Markdown("---")] * len(columns), *rows]
    return Markdown("\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in lines))


def _cell(value: Any) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", quoted(value))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
