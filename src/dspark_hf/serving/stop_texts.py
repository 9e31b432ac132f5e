"""Texts that end an answer: found in what tokens decode to, and cut out of what a client gets."""

from collections.abc import Iterable, Sequence
from typing import Any

# Bytes of a character: so many tokens may make one.
_MOST_BYTES = 4


class StopTexts:
    """Finds the token with which an answer first holds one of some texts.

    Special tokens count as the texts that they are spelt with.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The target's; it may come later, before the first request
            that has such texts.

    Attributes:
        tokenizer (`PreTrainedTokenizerBase`): It.
    """

    def __init__(self, tokenizer: Any = None):
        self.tokenizer = tokenizer

    def num_until(self, texts: Sequence[str], before: Sequence[int], tokens: Sequence[int]) -> int | None:
        """How many of some tokens there are until the answer holds one of the texts.

        Args:
            texts (`Sequence[str]`): The texts.
            before (`Sequence[int]`): Tokens of the answer that hold none of them.
            tokens (`Sequence[int]`): Those that follow.

        Returns:
            `int`, or None if it does not hold one.
        """
        # A text that ends in these tokens begins no earlier than its bytes before them, a token each at least. Half a
        # pair of surrogates, which JSON may hold, occurs in no answer.
        reach = max(len(text.encode(errors="replace")) for text in texts) + _MOST_BYTES
        before = list(before[-reach:])
        if not self._holds(texts, [*before, *tokens]):
            return None
        return next(
            (num for num in range(1, len(tokens)) if self._holds(texts, [*before, *tokens[:num]])), len(tokens)
        )

    def _holds(self, texts: Sequence[str], ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in texts)


def cut_at(texts: Iterable[str], answer: str) -> str:
    """An answer up to where one of some texts begins.

    Args:
        texts (`Iterable[str]`): The texts.
        answer (`str`): The answer.
    """
    return answer[: min((place for text in texts if (place := answer.find(text)) >= 0), default=len(answer))]


class TextCutter:
    """[`cut_at`] for an answer that comes in pieces: what may be the beginning of a text is held back.

    Args:
        texts (`Sequence[str]`): The texts.
    """

    def __init__(self, texts: Sequence[str]):
        self._texts, self._held, self._has_ended = tuple(texts), "", False

    def feed(self, piece: str) -> str:
        """What may be shown now that a piece has come.

        Args:
            piece (`str`): It.
        """
        if self._has_ended:
            return ""
        text = self._held + piece
        shown = cut_at(self._texts, text)
        self._has_ended = len(shown) < len(text)
        num_held = 0 if self._has_ended else max(_overlap(text, stop) for stop in self._texts)
        self._held = text[len(text) - num_held :]
        return shown[: len(shown) - num_held]

    def rest(self) -> str:
        """What was held back, once there is no more to come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text with which `stop` may begin."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
