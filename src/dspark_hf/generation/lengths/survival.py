"""How likely each slot and all before it are accepted, from whoever has predicted best lately.

Shapes: B rows, n slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, log
from operator import mul

import numpy as np
import torch
from torch import Tensor

from .estimator import AcceptanceEstimator, sigmoid

# The share of its weight that an earlier round keeps when a slot is judged, and by how much a predictor must have been
# better before it takes over: in nats, which is odds of 7 to 1, and in nats a slot.
_KEPT, _MIN_NATS, _MARGIN = 0.995, 2.0, 0.01
# What stands for the largest probability of a draft that was certain.
_CERTAIN = 0.85


@dataclass
class Signals:
    """What a drafter says of its drafts, each before the slot's own token is known; on its device until it is read.

    Attributes:
        confidence_logits (`torch.Tensor` of shape `(rows, slots)`, *optional*): Of the confidence head.
        max_probs (`torch.Tensor` of shape `(rows, slots)`, *optional*): Largest probability of each distribution.
    """

    confidence_logits: Tensor | None
    max_probs: Tensor | None

    def read(self) -> dict[str, np.ndarray]:
        """Both on the host, `logits` and `max_probs`, as far as there are; waits once."""
        names = [name for name, value in (("logits", self.confidence_logits), ("max_probs", self.max_probs))
                 if value is not None]  # fmt: skip
        tensors = [value.float() for value in (self.confidence_logits, self.max_probs) if value is not None]
        return dict(zip(names, torch.stack(tensors).cpu().numpy(), strict=True)) if tensors else {}


def certain_signals(num_rows: int, num_slots: int) -> dict[str, np.ndarray]:
    """Signals of drafts that were certain, as those of lookup: that says nothing of their chance, so all are alike.

    Args:
        num_rows, num_slots (`int`): How many there are.
    """
    return {"max_probs": np.full((num_rows, num_slots), _CERTAIN)}


class SurvivalPredictor:
    """Predicts survival from the confidence head, the calibrated head, or an [`AcceptanceEstimator`].

    Which of them is used depends on earlier rounds alone: the one whose log loss on judged slots is least, once it is
    clearly less.

    Args:
        num_slots (`int`): Slots of the drafter.

    Attributes:
        temperatures (`list[float]` or `None`): Of each slot, that calibrate the head in this mode.
    """

    def __init__(self, num_slots: int):
        self.temperatures: list[float] | None = None
        self._estimator = AcceptanceEstimator(num_slots)
        self._losses: dict[str, float] = {}
        self._weight = 0.0
        self._in_use: str | None = None

    @property
    def in_use(self) -> str | None:
        """Who predicts: `head`, `calibrated` or `estimate`; None before the first round."""
        return self._in_use

    def survival(self, signals: dict[str, np.ndarray]) -> np.ndarray | None:
        """Survival `(rows, slots)` by the one who has predicted best so far; None where nobody can tell.

        Args:
            signals (`dict`): What [`Signals.read`] gives.
        """
        able = self._able(signals)
        if not able:
            return None
        if self._in_use not in able:
            self._in_use = able[0]
        best = min(able, key=lambda name: self._losses.get(name, inf))
        ahead = self._losses.get(self._in_use, 0.0) - self._losses.get(best, 0.0)
        if ahead > max(_MIN_NATS, _MARGIN * self._weight):
            self._in_use = best
        chance = self._chance_by(self._in_use)
        values = signals["max_probs" if self._in_use == "estimate" else "logits"].tolist()
        return np.array([list(accumulate(map(chance, row, range(len(row))), mul)) for row in values])

    def learn(
        self,
        signals: dict[str, np.ndarray],
        rows: Sequence[int],
        num_judged: Sequence[int],
        num_stood: Sequence[int],
    ) -> None:
        """Look at what became of a round's drafts.

        Args:
            signals (`dict`): As of `survival`.
            rows (`Sequence[int]`): Rows that were drafted for.
            num_judged (`Sequence[int]`): Slots of each of them that were judged: the accepted ones, and the one that
                was rejected, if any.
            num_stood (`Sequence[int]`): Drafts of each of them that were accepted.
        """
        able = self._able(signals)
        if sum(num_judged) == 0 or not able:
            return
        read = {name: values.tolist() for name, values in signals.items()}
        # Who comes later begins where the one in use is.
        begun = self._losses.get(self._in_use, 0.0)
        for name in able:
            chance, values = self._chance_by(name), read["max_probs" if name == "estimate" else "logits"]
            loss = self._losses.get(name, begun)
            for row, judged, stood in zip(rows, num_judged, num_stood, strict=True):
                for slot in range(judged):
                    likely = min(max(chance(values[row][slot], slot), 1e-4), 1 - 1e-4)
                    loss = _KEPT * loss - log(likely if slot < stood else 1 - likely)
            self._losses[name] = loss
        for _ in range(sum(num_judged)):
            self._weight = _KEPT * self._weight + 1
        if "max_probs" in read:
            self._estimator.note([read["max_probs"][row] for row in rows], num_judged, num_stood)

    def _able(self, signals: dict[str, np.ndarray]) -> list[str]:
        """Who can tell by these."""
        of_head = ["head"] if self.temperatures is None else ["calibrated", "head"]
        return [*(of_head if "logits" in signals else []), *(["estimate"] if "max_probs" in signals else [])]

    def _chance_by(self, name: str) -> Callable[[float, int], float]:
        """Chance that a slot is accepted where all before it are, from what was signalled of it and its place.

        It is asked for number by number: arrays of so few would take far longer.
        """
        if name == "estimate":
            return self._estimator.chance
        temperatures = self.temperatures if name == "calibrated" else None

        def by_head(logit: float, slot: int) -> float:
            logit = logit if logit == logit else 0.0
            return sigmoid(logit if temperatures is None else logit / temperatures[slot])

        return by_head
