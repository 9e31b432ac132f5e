"""Text that spells tokens which a chat is made of: a tokenizer makes real ones of it, which can end a turn and forge
others."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from dspark_hf.data.chat import render
from dspark_hf.data.encoding_file import encoding_file

# Shorter ones, such as a padding token "!", are ordinary text as well.
_SHORTEST = 3
# What a form may write in place of the model when it opens an answer.
_WRITTEN = re.compile("think|thought|reason", re.IGNORECASE)
_ROLES = ("system", "user", "assistant", "user", "assistant")
_turn_tokens: WeakKeyDictionary = WeakKeyDictionary()


def spelled_token(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The first token of those that make turns which the text of `messages` spells out; `None` where there is none.

    These are the tokens that the `tokenizer` marks as special (turns, ends, padding), and those that its chat template
    or encoding file puts around messages, however they are marked: DeepSeek's turn tokens are no special ones. Tokens
    that models write into their text, such as `<think>`, are not among them.
    """
    added = [token for token in tokenizer.added_tokens_decoder.values() if len(token.content) >= _SHORTEST]
    turns = _tokens_of_turns(tokenizer, [token.content for token in added])
    tokens = [token.content for token in added if token.special or token.content in turns]
    texts = _texts(messages)
    return next((token for token in tokens for text in texts if token in text), None)


def _tokens_of_turns(tokenizer: Any, tokens: Sequence[str]) -> set[str]:
    """Those of the tokens that stand around messages, found by rendering a chat."""
    form = (tokenizer.chat_template, getattr(tokenizer, "encoding_file", None), tuple(tokens))
    known = _turn_tokens.get(tokenizer)
    if known is None or known[0] != form:
        frames = _frames(tokenizer)
        known = _turn_tokens[tokenizer] = (form, {token for token in tokens if _is_around(token, frames)})
    return known[1]


def _is_around(token: str, frames: Sequence[tuple[str, str]]) -> bool:
    return any(token in frame and not (role == "assistant" and _WRITTEN.search(token)) for role, frame in frames)


def _frames(tokenizer: Any) -> list[tuple[str, str]]:
    """What stands before each message of a chat, with the message's role."""
    # Forms may refuse a system message, or an answer at the end.
    for roles in (_ROLES, _ROLES[1:], _ROLES[1:4], _ROLES[1:2]):
        marks = [f"\u2402{role}{number}\u2403" for number, role in enumerate(roles)]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            if tokenizer.chat_template is None and encoding_file(tokenizer) is None:
                return []
            text = render(tokenizer, messages)
        except ValueError:
            continue
        pieces = re.split("|".join(marks), text)
        if len(pieces) == len(roles) + 1:
            return [*zip(roles, pieces[:-1], strict=True), ("assistant", pieces[-1])]
    return []


def _texts(value: Any) -> list[str]:
    """Every text in a message, those of its thoughts and tool calls included."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in _texts(part)]
