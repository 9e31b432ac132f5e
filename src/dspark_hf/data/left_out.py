"""Rows that nothing is learned from: counted by reason, told in one line."""

import logging

logger = logging.getLogger(__name__)

SPELLED = "spell special tokens of the tokenizer (keep_special_tokens keeps them)"
NO_ANSWER = "have no answer of two tokens"
TOO_LONG = "have an answer only beyond max_length"
_UNUSABLE = "cannot be used"


class LeftOut:
    """Counts rows that are left out.

    Args:
        strict (`bool`, *optional*, defaults to `False`): Whether a row that cannot be read or encoded is an error.
    """

    def __init__(self, strict: bool = False):
        self.strict, self.num_rows = strict, 0
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def refuse(self, place: str, error: Exception) -> None:
        """Count a row that cannot be read or encoded.

        Args:
            place (`str`): Where it stands.
            error (`Exception`): Why.

        Raises:
            `ValueError`: With both, if strict.
        """
        if self.strict:
            raise ValueError(f"{place}: {error}") from error
        self.skip(_UNUSABLE, f"{place}: {error}")

    def skip(self, reason: str, example: str = "") -> None:
        """Count a row for one `reason` of this file's; the first `example` is told."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._examples.setdefault(reason, example)

    def __len__(self) -> int:
        """How many are left out."""
        return sum(self._counts.values())

    def reasons(self) -> str:
        """How many for which reason, with an example where something is wrong."""
        told = []
        for reason, count in self._counts.items():
            example = f" (the first: {self._examples[reason].rstrip('.')})" if self._examples[reason] else ""
            told.append(f"{count} {reason}{example}")
        return "; ".join(told)

    def tell(self, what: str) -> None:
        """Say it in one line, if there is something to say.

        Args:
            what (`str`): The data.
        """
        if len(self):
            logger.warning(
                f"{what}: {len(self)} of {self.num_rows} conversations are left out: "
                f"{' '.join(self.reasons().split())}."
            )
