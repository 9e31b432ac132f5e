"""What earlier rounds tell of the drafts to come.

Shapes: R rows, n slots, m drafts of all rows.
"""

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import numpy as np

# How often a draft stands if all before it do, as believed before any was seen, and for how many drafts that counts.
_PRIOR_RATE, _PRIOR_WEIGHT = 0.6, 10.0
# For how many drafts the common rate counts in a slot's own, and the share that a rate keeps when a draft is judged.
_COMMON_WEIGHT, _KEPT = 6.0, 0.985
# Blocks whose survival is remembered, and how many there are taken to have been before any was seen.
_NUM_BLOCKS, _NUM_PRIOR = 64, 16


class Forecast:
    """How often drafts stood, and how likely they were taken to.

    Args:
        num_slots (`int`): Slots of the source.
    """

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self._judged, self._stood = [0.0] * num_slots, [0.0] * num_slots
        self._all_judged = self._all_stood = 0.0
        prior = [_PRIOR_RATE ** (slot + 1) for slot in range(num_slots)]
        self._blocks: deque[list[float]] = deque([prior] * _NUM_PRIOR, maxlen=_NUM_BLOCKS)
        # By rows and slots; made when they are asked for, and again when an eighth of the blocks is new.
        self._gains: dict[tuple[int, int], np.ndarray] = {}
        self._num_new = 0

    def rates(self) -> list[float]:
        """Chance of each slot, if all before it stand."""
        common = (_PRIOR_RATE * _PRIOR_WEIGHT + self._all_stood) / (_PRIOR_WEIGHT + self._all_judged)
        of_slots = zip(self._judged, self._stood, strict=True)
        return [(_COMMON_WEIGHT * common + stood) / (_COMMON_WEIGHT + judged) for judged, stood in of_slots]

    def gains(self, num_rows: int, num_slots: int) -> np.ndarray:
        """Drafts that are expected to stand, of the best 0 to m of so many rows and slots: `(m + 1,)`.

        The best are those with the greatest survival, so a row that is likely to go on gets more than another.

        Args:
            num_rows (`int`): Rows that are drafted for.
            num_slots (`int`): Slots of each, at least one.
        """
        key = num_rows, num_slots
        if key not in self._gains:
            values = np.sort([block[:num_slots] for block in self._blocks], axis=None)[::-1]
            sums = np.concatenate([[0.0], values.cumsum()])
            # The blocks that are remembered stand for as many as there are rows.
            scale = num_rows / len(self._blocks)
            at = np.arange(num_rows * num_slots + 1)
            self._gains[key] = np.interp(at, np.arange(len(sums)) * scale, sums * scale)
        return self._gains[key]

    def note(self, survival: Sequence[Sequence[float]]) -> None:
        """Remember this round's `survival` `(rows, slots)`; slots that were not drafted are taken to go on so."""
        rates = self.rates() if len(survival[0]) < self.num_slots else ()
        for block in survival:
            tails = accumulate(rates[len(block) :], mul, initial=block[-1])
            self._blocks.append([*block[:-1], *tails])
        self._num_new += len(survival)
        if self._num_new * 8 >= len(self._blocks):
            self._gains, self._num_new = {}, 0

    def learn(self, num_judged: Sequence[int], num_stood: Sequence[int]) -> None:
        """Count what became of a round's drafts.

        Args:
            num_judged (`Sequence[int]`): Slots of each row that were judged: the accepted ones, and the one that was
                rejected, if any.
            num_stood (`Sequence[int]`): Drafts of each row that were accepted.
        """
        # Numbers as they are: arrays of so few would take far longer.
        for judged, stood in zip(num_judged, num_stood, strict=True):
            for slot in range(judged):
                has_stood = slot < stood
                self._all_judged = _KEPT * self._all_judged + 1
                self._all_stood = _KEPT * self._all_stood + has_stood
                self._judged[slot] = _KEPT * self._judged[slot] + 1
                self._stood[slot] = _KEPT * self._stood[slot] + has_stood
