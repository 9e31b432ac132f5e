"""How likely a draft is accepted, learned while decoding from how sure the drafter was.

It needs no confidence head, so it works for every drafter.
Shapes: B rows, n slots.
"""

from collections import deque
from collections.abc import Sequence
from math import exp, log

import numpy as np

# What is believed before anything was seen: weight of logit(max q), common bias, bias of each slot; and how many
# judged slots each belief counts for.
_START_WEIGHT, _START_BIAS = 0.5, -0.2
_TRUST_IN_WEIGHT, _TRUST_IN_BIAS, _TRUST_IN_SLOT = 4.0, 1.0, 4.0
# Judged slots that are looked at, and how many new ones there are between two fits: at first, and at most.
_WINDOW, _FIRST_FIT, _NEXT_FIT = 512, 12, 96
_MOST_LOGIT, _NUM_STEPS, _LONGEST_STEP, _LEAST_STEP = 6.0, 6, 2.0, 1e-3


class AcceptanceEstimator:
    """Estimates P(slot k accepted | all before accepted) as `sigmoid(w * logit(max q_k) + b + b_k)`: 2 + n numbers.

    max q_k is the largest probability of the distribution that slot k's draft is drawn from, which is known before
    the draft is. The numbers are fitted to the latest judged slots by damped Newton steps, drawn to what is believed
    beforehand as few slots would be.

    Args:
        num_slots (`int`): Slots of the drafter.

    Raises:
        `ValueError`: If there is no slot.

    Source: the acceptance estimator of vLLM's adaptive verification.
    """

    def __init__(self, num_slots: int):
        if not (isinstance(num_slots, int) and num_slots >= 1):
            raise ValueError(f"num_slots must be a whole number of at least 1, got {num_slots!r}.")
        self.num_slots = num_slots
        self._believed = [_START_WEIGHT, _START_BIAS, *[0.0] * num_slots]
        self._trust = np.array([_TRUST_IN_WEIGHT, _TRUST_IN_BIAS, *[_TRUST_IN_SLOT] * num_slots])
        # Numbers as they are, here and below: arrays of so few would take far longer.
        self._numbers = list(self._believed)
        self._seen: deque[tuple[int, float, bool]] = deque(maxlen=_WINDOW)
        self._num_new, self._next_fit = 0, _FIRST_FIT

    def predict(self, max_probs: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Chances of slots, given that all before them are accepted.

        Args:
            max_probs (`numpy.ndarray` of shape `(rows, slots)`): Largest probability of each slot's distribution.

        Returns:
            `numpy.ndarray` of shape `(rows, slots)`.

        Raises:
            `ValueError`: If there are more slots than the drafter has.
        """
        max_probs = np.asarray(max_probs, dtype=float)
        if max_probs.shape[-1] > self.num_slots:
            raise ValueError(
                f"max_probs has {max_probs.shape[-1]} slots, and this estimator's drafter {self.num_slots}."
            )
        return np.array([[self.chance(prob, slot) for slot, prob in enumerate(row)] for row in max_probs.tolist()])

    def chance(self, max_prob: float, slot: int) -> float:
        """Chance of one slot.

        Args:
            max_prob (`float`): Largest probability of its distribution.
            slot (`int`): Its place, from 0.

        Returns:
            `float`: Between 0 and 1.
        """
        return sigmoid(self._numbers[0] * _logit(max_prob) + self._numbers[1] + self._numbers[2 + slot])

    def note(
        self, max_probs: Sequence[Sequence[float]], num_judged: Sequence[int], accepted_lens: Sequence[int]
    ) -> None:
        """Look at what became of a round's drafts.

        Args:
            max_probs (`Sequence[Sequence[float]]` of shape `(rows, slots)`): Largest probability of each slot's
                distribution.
            num_judged (`Sequence[int]`): Slots of each row that were judged: the accepted ones, and the one that was
                rejected, if any.
            accepted_lens (`Sequence[int]`): Drafts of each row that were accepted.
        """
        for row, judged, accepted_len in zip(max_probs, num_judged, accepted_lens, strict=True):
            self._seen.extend((slot, _logit(row[slot]), slot < accepted_len) for slot in range(judged))
        self._num_new += sum(num_judged)
        if self._num_new >= self._next_fit:
            self._num_new, self._next_fit = 0, min(2 * self._next_fit, _NEXT_FIT)
            self._fit()

    def _fit(self) -> None:
        slots, logits, accepted = (np.array(values) for values in zip(*self._seen, strict=True))
        inputs = np.zeros((len(slots), len(self._numbers)))
        inputs[:, 0], inputs[:, 1] = logits, 1.0
        inputs[np.arange(len(slots)), 2 + slots] = 1.0
        numbers = np.array(self._numbers)
        for _ in range(_NUM_STEPS):
            chances = 1 / (1 + np.exp(-inputs @ numbers))
            slope = inputs.T @ (chances - accepted) + self._trust * (numbers - self._believed)
            curvature = (inputs.T * (chances * (1 - chances))) @ inputs + np.diag(self._trust)
            step = np.linalg.solve(curvature, slope)
            numbers -= np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
            if np.abs(step).max() < _LEAST_STEP:
                break
        self._numbers = numbers.tolist()


def _logit(prob: float) -> float:
    # What is not a number comes from a drafter that is broken: as good as none.
    prob = min(max(prob, 1e-9), 1 - 1e-9) if prob == prob else 1e-9
    return min(max(log(prob / (1 - prob)), -_MOST_LOGIT), _MOST_LOGIT)


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-x)), without overflow.

    Args:
        logit (`float`): The number.
    """
    return 1 / (1 + exp(-min(max(logit, -30.0), 30.0)))
