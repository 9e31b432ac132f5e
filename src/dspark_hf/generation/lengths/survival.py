"""How likely each slot and all before it are accepted, from whoever has predicted best lately.

Shapes: B rows, n slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from .estimator import AcceptanceEstimator, sigmoid

# The share of its weight that an earlier round keeps when a slot is judged, and how many judged slots' loss a
# predictor must be better by, in nats a slot, before it takes over.
_KEPT, _MIN_JUDGED, _MARGIN = 0.995, 40, 0.01
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

    def predict(self, signals: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Chances `(rows, slots)` that a slot is accepted where all before it are, by everyone who can tell.

        Args:
            signals (`dict`): What [`Signals.read`] gives.
        """
        chances = {}
        if "logits" in signals:
            logits = np.where(np.isnan(signals["logits"]), 0, signals["logits"])
            if self.temperatures is not None:
                chances["calibrated"] = sigmoid(logits / np.array(self.temperatures[: logits.shape[1]]))
            chances["head"] = sigmoid(logits)
        if "max_probs" in signals:
            chances["estimate"] = self._estimator.predict(signals["max_probs"])
        return chances

    def survival(self, chances: dict[str, np.ndarray]) -> np.ndarray | None:
        """Survival `(rows, slots)` by the best of `chances`, each so shaped, so far; None where nobody can tell."""
        if not chances:
            return None
        if self._in_use not in chances:
            self._in_use = next(iter(chances))
        best = min(chances, key=lambda name: self._losses.get(name, np.inf))
        if self._weight >= _MIN_JUDGED and self._losses[best] < self._losses[self._in_use] - _MARGIN * self._weight:
            self._in_use = best
        return chances[self._in_use].cumprod(-1)

    def learn(
        self,
        signals: dict[str, np.ndarray],
        chances: dict[str, np.ndarray],
        rows: Sequence[int],
        num_judged: Sequence[int],
        num_stood: Sequence[int],
    ) -> None:
        """Look at what became of a round's drafts.

        Args:
            signals (`dict`): As of `predict`.
            chances (`dict`): What was predicted.
            rows (`Sequence[int]`): Rows that were drafted for.
            num_judged (`Sequence[int]`): Slots of each of them that were judged: the accepted ones, and the one that
                was rejected, if any.
            num_stood (`Sequence[int]`): Drafts of each of them that were accepted.
        """
        if sum(num_judged) == 0 or not chances:
            return
        rows = list(rows)
        # Numbers as they are: arrays of so few would take far longer.
        of_rows = {name: values[rows].tolist() for name, values in chances.items()}
        for row, (judged, stood) in enumerate(zip(num_judged, num_stood, strict=True)):
            for slot in range(judged):
                self._weight = _KEPT * self._weight + 1
                for name, values in of_rows.items():
                    chance = min(max(values[row][slot], 1e-4), 1 - 1e-4)
                    loss = -log(chance if slot < stood else 1 - chance)
                    self._losses[name] = _KEPT * self._losses.get(name, 0.0) + loss
        if "max_probs" in signals:
            self._estimator.note(signals["max_probs"][rows], num_judged, num_stood)
