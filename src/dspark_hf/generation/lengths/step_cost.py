"""What a pass takes on a machine, by its tokens and the context, and a proposal by its rows.

Shapes: T token counts, C context lengths, R row counts of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

# The rule of thumb: what is added to a pass over one token by any more of them, and by as many as the device bears
# while it waits for weights; and what the drafter adds. All in passes over one token.
_ANY_MORE, _FULL, _DRAFTER = 0.05, 0.35, 0.2
# Tokens that so bear: the cores of a CPU are soon busy with computing. A single core waits as long as two do.
_TOKENS_OF_CORE, _FEWEST_CORES, _TOKENS_OF_DEVICE = 8, 2, 256


@dataclass(frozen=True)
class StepCost:
    """Seconds of the target's pass and of the drafter's, measured on one machine with one pair of models.

    Costs have stairs, so a count between two measured ones is looked up at the next larger one. Past the largest, time
    grows with the tokens; between two contexts it is interpolated.

    Args:
        tokens (`Sequence[int]`): Tokens of a pass over all rows, rising.
        contexts (`Sequence[int]`): Tokens before it, of a row, rising.
        verify_seconds (`Sequence[Sequence[float]]`): Of a pass, for each context and number of tokens.
        rows (`Sequence[int]`): Rows that are drafted for at once, rising.
        draft_seconds (`Sequence[float]`): Of a proposal for so many rows.
        made_for (`dict`, *optional*): Device, models, dtype, attention, threads and versions that it holds for. Empty
            where it does not matter.

    Raises:
        `ValueError`: If numbers are missing, not positive, not finite, or do not rise where they must.
    """

    tokens: Sequence[int]
    contexts: Sequence[int]
    verify_seconds: Sequence[Sequence[float]]
    rows: Sequence[int]
    draft_seconds: Sequence[float]
    made_for: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tokens", "contexts", "rows"):
            values = getattr(self, name)
            is_whole = all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values)
            if not values or not is_whole or any(a >= b for a, b in zip(values, values[1:], strict=False)):
                raise ValueError(f"{name} of a step cost must be positive whole numbers that rise, got {values!r}.")
        expected = {"verify_seconds": (len(self.contexts), len(self.tokens)), "draft_seconds": (len(self.rows),)}
        for name, shape in expected.items():
            try:
                seconds = np.array(getattr(self, name), dtype=float)
            except (TypeError, ValueError):
                seconds = np.array(np.nan)
            if seconds.shape != shape:
                raise ValueError(
                    f"{name} of a step cost must have the shape {shape} of its tokens, contexts and rows, without "
                    f"holes, got {getattr(self, name)!r}."
                )
            # A drafter may cost nothing, as lookup does.
            if not (np.isfinite(seconds).all() and (seconds >= 0).all()) or (
                name != "draft_seconds" and not seconds.all()
            ):
                raise ValueError(
                    f"{name} of a step cost must be positive and finite, got {getattr(self, name)!r}. Measure again."
                )

    @classmethod
    def rule_of_thumb(cls, device: torch.device) -> "StepCost":
        """What passes take by estimate, in passes over one token: it looks at no clock and knows no models.

        Args:
            device (`torch.device`): Where the target runs.

        Returns:
            [`StepCost`].
        """
        num_cores = max(torch.get_num_threads(), _FEWEST_CORES)
        most = _TOKENS_OF_CORE * num_cores if device.type == "cpu" else _TOKENS_OF_DEVICE
        tokens = [*range(1, 33), *range(34, 65, 2), *range(72, 129, 8), *range(160, 513, 32)]
        verify = [1 + _ANY_MORE * (count > 1) + _FULL * (count - 1) / most for count in tokens]
        return cls(tokens, [1], [verify], tokens, [_DRAFTER * seconds for seconds in verify])

    def verify(self, num_tokens: int, context_len: int = 1) -> np.ndarray:
        """Seconds of passes over 1 to `num_tokens` tokens.

        Args:
            num_tokens (`int`): Most tokens.
            context_len (`int`, *optional*, defaults to 1): Tokens before them.

        Returns:
            `numpy.ndarray` of shape `(num_tokens + 1,)`; the first entry is 0.
        """
        after = int(np.searchsorted(self.contexts[:-1], context_len))
        before = max(after - 1, 0)
        share = (
            1.0
            if after == before
            else (context_len - self.contexts[before]) / (self.contexts[after] - self.contexts[before])
        )
        ends = (np.array(self.verify_seconds[place], dtype=float) for place in (before, after))
        of_context = np.average(list(ends), axis=0, weights=[1 - min(share, 1.0), min(share, 1.0)])
        return np.concatenate([[0.0], _by_ceil(np.arange(1, num_tokens + 1), self.tokens, of_context)])

    def draft(self, num_rows: int) -> float:
        """Seconds of a proposal for so many rows.

        Args:
            num_rows (`int`): Rows that are drafted for.

        Returns:
            `float`.
        """
        return float(_by_ceil(np.array([num_rows]), self.rows, np.array(self.draft_seconds, dtype=float))[0])

    def without_draft(self) -> "StepCost":
        """The same for drafts that cost nothing to make."""
        return StepCost(self.tokens, self.contexts, self.verify_seconds, [1], [0.0], self.made_for)


def _by_ceil(counts: np.ndarray, known: Sequence[int], seconds: np.ndarray) -> np.ndarray:
    places = np.searchsorted(known, counts)
    inside = seconds[np.minimum(places, len(known) - 1)]
    return np.where(places < len(known), inside, inside * counts / known[-1])
