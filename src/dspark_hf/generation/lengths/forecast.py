"""What earlier rounds tell of the drafts to come.

Shapes: R rows, n slots, m drafts of all rows.
"""

from collections import deque

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
        self._judged, self._stood = np.zeros(num_slots), np.zeros(num_slots)
        self._all_judged = self._all_stood = 0.0
        prior = np.full(num_slots, _PRIOR_RATE).cumprod()
        self._blocks: deque[np.ndarray] = deque([prior] * _NUM_PRIOR, maxlen=_NUM_BLOCKS)

    def rates(self) -> np.ndarray:
        """Chance of each slot, if all before it stand: `(slots,)`."""
        common = (_PRIOR_RATE * _PRIOR_WEIGHT + self._all_stood) / (_PRIOR_WEIGHT + self._all_judged)
        return (_COMMON_WEIGHT * common + self._stood) / (_COMMON_WEIGHT + self._judged)

    def gains(self, num_rows: int, num_slots: int) -> np.ndarray:
        """Drafts that are expected to stand, of the best 0 to m of so many rows and slots: `(m + 1,)`.

        The best are those with the greatest survival, so a row that is likely to go on gets more than another.

        Args:
            num_rows (`int`): Rows that are drafted for.
            num_slots (`int`): Slots of each, at least one.
        """
        blocks = np.stack(self._blocks)
        values = np.sort(blocks[:, :num_slots], axis=None)[::-1]
        # The blocks that are remembered stand for as many as there are rows.
        scale = num_rows / len(blocks)
        known = np.arange(len(values) + 1) * scale
        return np.interp(np.arange(num_rows * num_slots + 1), known, np.concatenate([[0.0], values.cumsum() * scale]))

    def note(self, survival: np.ndarray) -> None:
        """Remember this round's `survival` `(rows, slots)`; slots that were not drafted are taken to go on so."""
        missing = self.num_slots - survival.shape[1]
        for row in survival:
            tail = row[-1] * self.rates()[survival.shape[1] :].cumprod() if missing else []
            self._blocks.append(np.concatenate([row, tail]))

    def learn(self, num_judged: int, num_stood: int) -> None:
        """Count what became of a row's drafts.

        Args:
            num_judged (`int`): Slots that were judged: the accepted ones, and the one that was rejected, if any.
            num_stood (`int`): Drafts that were accepted.
        """
        kept = _KEPT**num_judged
        self._all_judged = kept * self._all_judged + num_judged
        self._all_stood = kept * self._all_stood + num_stood
        self._judged[:num_judged] = _KEPT * self._judged[:num_judged] + 1
        self._stood[:num_judged] *= _KEPT
        self._stood[:num_stood] += 1
