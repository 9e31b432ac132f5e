"""What a round takes with the rows at work, in seconds and in plain steps.

Shapes: R rows at work, n slots.
"""

import numpy as np

from .prefixes import best_count
from .step_cost import StepCost

# Context is looked up in steps of so many tokens, and tokens of prompts in steps of so many.
_CONTEXT_STEP, _PROMPT_STEP = 128, 16
# Sizes of passes that are remembered: a server sees new ones for as long as it runs.
_MOST_TABLES = 512


class RoundCosts:
    """A table of costs, read for one round after the other.

    Args:
        cost ([`StepCost`]): What passes take.
        most_slots (`int`): Most slots of any source.

    Attributes:
        num_rows (`int`): Rows at work.
        seconds (`numpy.ndarray` of shape `(1 + R * n,)`): Of a pass over 0, 1, ... drafts of all rows together.
        steps (`list[float]`): The same in plain steps.
        draft_seconds, draft_steps (`float`): Of a proposal for all rows.
    """

    def __init__(self, cost: StepCost, most_slots: int):
        self._cost, self._most_slots = cost, most_slots
        self._tables: dict[tuple[int, int, int], tuple[np.ndarray, list[float], float]] = {}
        self.num_rows, self.seconds, self.steps = 1, np.ones(1), [1.0]
        self.draft_seconds = self.draft_steps = 0.0

    def reprice(self, cost: StepCost) -> None:
        """Go by another table from the next round on.

        Args:
            cost ([`StepCost`]): It.
        """
        self._cost = cost
        self._tables.clear()

    def begin(self, num_rows: int, context_len: int, num_prompt_tokens: int = 0) -> None:
        """Read what a round takes.

        Args:
            num_rows (`int`): Rows at work.
            context_len (`int`): Tokens of the longest.
            num_prompt_tokens (`int`, *optional*, defaults to 0): Tokens of others that go through the same pass.
        """
        key = num_rows, -(-context_len // _CONTEXT_STEP), -(-num_prompt_tokens // _PROMPT_STEP)
        if key not in self._tables:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            fewest = num_rows + key[2] * _PROMPT_STEP
            verify = self._cost.verify(fewest + num_rows * self._most_slots, key[1] * _CONTEXT_STEP)
            # A pass over more tokens is never taken to cost less: fewer may stand for that measurement.
            seconds = np.minimum.accumulate(verify[: fewest - 1 : -1])[::-1]
            self._tables[key] = seconds, (seconds / seconds[0]).tolist(), self._cost.draft(num_rows)
        self.num_rows = num_rows
        self.seconds, self.steps, self.draft_seconds = self._tables[key]
        self.draft_steps = self.draft_seconds / float(self.seconds[0])

    def extra(self, num_drafts: int, is_free: bool) -> float:
        """Plain steps that a round of so many drafts takes beyond one.

        Args:
            num_drafts (`int`): Of all rows together.
            is_free (`bool`): Whether drafting itself costs nothing.
        """
        return self.steps[num_drafts] - 1 + (0.0 if is_free else self.draft_steps)

    def speed(self, gains: np.ndarray, is_free: bool) -> float:
        """Tokens per second of the best number of drafts, to those of plain steps.

        Args:
            gains (`numpy.ndarray`): Expected output of 0, 1, ... drafts of all rows together.
            is_free (`bool`): Whether drafting itself costs nothing.
        """
        seconds = self.seconds[: len(gains)] + self.draft_seconds * (not is_free)
        _, rate = best_count(self.num_rows, gains[: len(seconds)], seconds)
        return rate * self.seconds[0] / self.num_rows
