"""What earlier rounds tell of a source of drafts: a drafter on its target, or lookup.

Shapes: B rows, n slots.
"""

from collections.abc import Sequence

import numpy as np

from .account import Account
from .forecast import Forecast
from .step_cost import StepCost
from .survival import SurvivalPredictor

# The share that the speed so far keeps from round to round, and for how many rounds it counts beforehand.
_KEPT, _PRIOR_ROUNDS = 0.97, 6.0
# Latest rounds whose longest verified prefix says how many slots are picked.
_NUM_PICKED = 16


class TrackRecord:
    """A source's account, its forecast, its predictors, and the speed that it has brought.

    Args:
        num_slots (`int`): Slots of the source.
        num_rows (`int`): Rows of the batch.

    Attributes:
        account ([`Account`]): What drafting has won and lost.
        forecast ([`Forecast`]): What is expected of blocks to come.
        predictor ([`SurvivalPredictor`]): Says how likely this round's drafts are to stand.
        num_drafted (`int`): Rounds that it drafted in.
    """

    def __init__(self, num_slots: int, num_rows: int):
        self.num_slots, self._num_rows = num_slots, num_rows
        self._cost: StepCost | None = None
        self.account, self.forecast = Account(num_rows), Forecast(num_slots)
        self.predictor = SurvivalPredictor(num_slots)
        self.num_drafted = 0
        self._tokens = self._steps = 0.0
        self._signals: dict[str, np.ndarray] = {}
        self._verified: list[int] = []

    def begin_call(self, pause_len: int, cost: StepCost) -> None:
        """Go on in another call: what was won and lost by another table says nothing of this one.

        Args:
            pause_len (`int`): Rounds of a whole pause.
            cost ([`StepCost`]): The table that the call goes by, before rounds correct it.
        """
        if self._cost is not None and self._cost != cost:
            self.account, self._tokens, self._steps = Account(self._num_rows), 0.0, 0.0
        self._cost = cost
        self.account.begin_call(pause_len)

    @property
    def num_picked(self) -> int:
        """Slots worth picking a token for: one more than lately was verified of any row."""
        if len(self._verified) < _NUM_PICKED:
            return self.num_slots
        return min(self.num_slots, 1 + max(self._verified))

    def speed(self, expected: float) -> float:
        """Tokens of a row in a plain step's time, lately; `expected` before there were rounds, and never below 1."""
        tokens = self._tokens + _PRIOR_ROUNDS * _KEPT**self.num_drafted * expected
        return max(1.0, tokens / (self._steps + _PRIOR_ROUNDS * _KEPT**self.num_drafted))

    def predict(self, signals: dict[str, np.ndarray], num_rows: int, num_slots: int) -> np.ndarray:
        """Survival `(rows, slots)` of a round's drafts.

        Args:
            signals (`dict`): What [`Signals.read`] gives; where it has nothing, slots are as in earlier rounds.
            num_rows (`int`): Rows.
            num_slots (`int`): Slots that were drafted.
        """
        self._signals = signals
        survival = self.predictor.survival(signals)
        if survival is None:
            return np.tile(np.cumprod(self.forecast.rates()[:num_slots]), (num_rows, 1))
        return survival

    def learn(
        self,
        rows: Sequence[int],
        survival: np.ndarray | None,
        lens: Sequence[int],
        num_judged: Sequence[int],
        num_stood: Sequence[int],
    ) -> None:
        """Look at what became of a round's drafts.

        Args:
            rows (`Sequence[int]`): Rows that were drafted for.
            survival (`numpy.ndarray` of shape `(rows, slots)`, *optional*): What `predict` gave, of all rows.
            lens (`Sequence[int]`): Drafts of each row that were verified.
            num_judged (`Sequence[int]`): Slots of each row that were judged.
            num_stood (`Sequence[int]`): Drafts of each row that were accepted.
        """
        self.num_drafted += 1
        if survival is not None:
            # Processes that share a target verify what the first has drafted, which may be more.
            num_judged = [min(num, survival.shape[1]) for num in num_judged]
            num_stood = [min(num, survival.shape[1]) for num in num_stood]
        self._verified = [*self._verified[1 - _NUM_PICKED :], max(lens[row] for row in rows)]
        if survival is not None:
            values = survival.tolist()
            self.forecast.note([values[row] for row in rows])
        judged, stood = [num_judged[row] for row in rows], [num_stood[row] for row in rows]
        self.forecast.learn(judged, stood)
        self.predictor.learn(self._signals, rows, judged, stood)

    def settle(self, gain: float, extra: float) -> None:
        """Count what a round won and took, in plain steps.

        Args:
            gain (`float`): Drafts that became output, per row that was drafted for.
            extra (`float`): Plain steps that the round took beyond one.
        """
        self._tokens, self._steps = _KEPT * self._tokens + 1 + gain, _KEPT * self._steps + 1 + extra
        self.account.settle(gain, extra)
