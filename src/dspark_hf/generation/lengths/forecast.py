"""What earlier rounds tell of the drafts to come.

Shapes: R rows, n slots, m drafts of all rows.
"""

from collections.abc import Sequence

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
        self._blocks = np.tile(np.full(num_slots, _PRIOR_RATE).cumprod(), (_NUM_PRIOR, 1))
        # Of the best 0, 1, ... drafts of those blocks, by slots; made when it is asked for.
        self._sums: dict[int, np.ndarray] = {}

    def rates(self) -> np.ndarray:
        """Chance of each slot, if all before it stand: `(slots,)`."""
        common = (_PRIOR_RATE * _PRIOR_WEIGHT + self._all_stood) / (_PRIOR_WEIGHT + self._all_judged)
        of_slots = zip(self._judged, self._stood, strict=True)
        return np.array([(_COMMON_WEIGHT * common + stood) / (_COMMON_WEIGHT + judged) for judged, stood in of_slots])

    def gains(self, num_rows: int, num_slots: int) -> np.ndarray:
        """Drafts that are expected to stand, of the best 0 to m of so many rows and slots: `(m + 1,)`.

        The best are those with the greatest survival, so a row that is likely to go on gets more than another.

        Args:
            num_rows (`int`): Rows that are drafted for.
            num_slots (`int`): Slots of each, at least one.
        """
        if num_slots not in self._sums:
            values = np.sort(self._blocks[:, :num_slots], axis=None)[::-1]
            self._sums[num_slots] = np.concatenate([[0.0], values.cumsum()])
        sums = self._sums[num_slots]
        # The blocks that are remembered stand for as many as there are rows.
        scale = num_rows / len(self._blocks)
        return np.interp(np.arange(num_rows * num_slots + 1), np.arange(len(sums)) * scale, sums * scale)

    def note(self, survival: np.ndarray) -> None:
        """Remember this round's `survival` `(rows, slots)`; slots that were not drafted are taken to go on so."""
        if survival.shape[1] < self.num_slots:
            tails = survival[:, -1:] * self.rates()[survival.shape[1] :].cumprod()
            survival = np.concatenate([survival, tails], 1)
        self._blocks = np.concatenate([self._blocks, survival])[-_NUM_BLOCKS:]
        self._sums = {}

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
