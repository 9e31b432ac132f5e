"""The decisions of one generation on lengths: whether to draft, how many slots to pick, and how many to verify.

Shapes: R rows at work, n slots.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .last_row import row_weights, steps_saved, time_apart
from .prefixes import best_count, early_stop, share_out, walk
from .round_costs import RoundCosts
from .scheduler import PrefixScheduler
from .step_cost import StepCost
from .track_record import TrackRecord

# Tokens by which lengths may differ in cost without a look at survival, which waits for the device.
_NEGLIGIBLE = 0.02


@dataclass
class Drafted:
    """A source's part of a round's drafts.

    Attributes:
        record ([`TrackRecord`]): The source's.
        rows (`list[int]`): Rows that it drafted for.
        survival (`numpy.ndarray` of shape `(rows, slots)`): Of all rows; only its own mean something.
        is_free (`bool`): Whether drafting itself costs nothing.
    """

    record: TrackRecord
    rows: list[int]
    survival: np.ndarray
    is_free: bool = False


class Schedule:
    """Decides for one generation, in which the table of costs stays as it is, or for a batch that never ends.

    Args:
        options ([`PrefixScheduler`]): How to decide.
        cost ([`StepCost`]): What passes take.
        most_slots (`int`): Most slots of any source.
    """

    def __init__(self, options: PrefixScheduler, cost: StepCost, most_slots: int):
        self.options = options
        self._round = RoundCosts(cost, most_slots)
        # What a source has won says nothing until a round is settled at these costs.
        self._settled: set[TrackRecord] = set()
        self._speeds: dict[TrackRecord, tuple[np.ndarray, np.ndarray, float]] = {}
        self._earlier: deque[tuple[int, np.ndarray]] = deque(maxlen=2)
        self._num_probes = 0
        self._left: Sequence[int] = [1]
        self._weights = row_weights(self._left)

    def reprice(self, cost: StepCost) -> None:
        """Go by another table from the next round on.

        Args:
            cost ([`StepCost`]): It.
        """
        self._round.reprice(cost)
        self._settled.clear()

    @property
    def is_auto(self) -> bool:
        """Whether drafting is left out where it does not pay."""
        return self.options.policy == "auto"

    def begin(self, left: Sequence[int], context_len: int, num_prompt_tokens: int = 0) -> None:
        """Begin a round.

        Args:
            left (`Sequence[int]`): Tokens that each row at work may still make.
            context_len (`int`): Tokens of the longest.
            num_prompt_tokens (`int`, *optional*, defaults to 0): Tokens of others that go through the same pass.
        """
        self._left, self._weights = left, row_weights(left)
        self._round.begin(len(left), context_len, num_prompt_tokens)

    def slots(self, record: TrackRecord, num_rows: int, is_free: bool = False) -> int:
        """How many slots a source should pick for its rows; none where it is not to draft.

        Args:
            record ([`TrackRecord`]): The source's.
            num_rows (`int`): Rows that it may draft for.
            is_free (`bool`, *optional*, defaults to `False`): Whether drafting itself costs nothing.
        """
        if not self.is_auto or num_rows == 0:
            return record.num_slots
        account = record.account
        account.pause_len = self.options.probe_interval
        if account.rests(self._round.num_rows):
            return 0
        if not self._pays(record, num_rows, is_free):
            account.pause(self._round.num_rows)
            return 0
        if not self._is_long_enough(record, num_rows, is_free):
            return 0
        return record.num_slots if self._probes(record) else record.num_picked

    def _pays(self, record: TrackRecord, num_rows: int, is_free: bool) -> bool:
        """Whether a source that does not rest is to go on drafting; else it rests for a while."""
        account = record.account
        # A round of one draft a row, the least there is.
        if not account.affords(self._round.extra(num_rows, is_free)):
            return False
        if account.is_trying:
            # Drafts that all stand are the most that there can be.
            hope = self._round.speed(np.arange(num_rows * record.num_slots + 1), is_free)
        elif self._has_proved(record):
            return True
        else:
            hope = self._expected(record, num_rows, is_free)
        return hope >= 1 + self.options.min_gain * self._margin(record)

    def _is_long_enough(self, record: TrackRecord, num_rows: int, is_free: bool) -> bool:
        """Whether drafting still pays where rows move apart: the fewer tokens are left, the more that takes.

        That says nothing of the source in other calls, so it does not rest for it.
        """
        if len(self._left) == 1 or record.account.is_trying or self._has_proved(record):
            return True
        least = (1 + self.options.min_gain * self._margin(record)) * (1 + time_apart(self._left, self._weights))
        return self._expected(record, num_rows, is_free) >= least or not record.account.skips()

    def _has_proved(self, record: TrackRecord) -> bool:
        """Whether a source has won, at these costs."""
        return record.account.is_winning and record in self._settled

    @staticmethod
    def _margin(record: TrackRecord) -> int:
        """A beginning must promise more than what goes on, and what has won, at other costs, is let go of last."""
        return int(record.num_drafted == 0 or record.account.is_trying) - record.account.is_winning

    def cut(
        self, parts: Sequence[Drafted], lens: Sequence[int], in_step: bool = False, room: int | None = None
    ) -> list[int]:
        """How many of its drafts each row has verified.

        Args:
            parts (`Sequence[Drafted]`): The sources' drafts.
            lens (`Sequence[int]`): Drafts that each row has.
            in_step (`bool`, *optional*, defaults to `False`): Whether a draft stands only if it does in all rows.
            room (`int`, *optional*): Most drafts of all rows together; not for rows in step.

        Returns:
            `list[int]`: At most `lens`.
        """
        survival, ahead = _of_all(parts, len(lens), max(lens))
        seconds, groups = self._round.seconds, len(lens)
        if in_step:
            most = min(n for n in lens if n > 0)
            # One row that stands for all, and takes as many tokens a slot.
            rows = [row for row, n in enumerate(lens) if n > 0]
            survival, ahead = survival[rows].prod(0, keepdims=True), ahead[rows].prod(0, keepdims=True)
            seconds, lens = self._round.seconds[:: self._round.num_rows], [most]
        elif self.is_auto and len(lens) > 1:
            survival = survival * self._weights[:, None]
        if self.is_auto:
            cut = self._walk(parts, survival, list(lens), ahead, seconds, room)
        else:
            cut = self._cut(parts, survival, list(lens), seconds)
            if room is not None and sum(cut) > room:
                cut = share_out(survival, cut, room)
        return cut * groups if in_step else cut

    def _cut(self, parts: Sequence[Drafted], survival: np.ndarray, most: list[int], seconds: np.ndarray) -> list[int]:
        policy = self.options.policy
        if policy == "fixed":
            return most
        if policy == "threshold":
            passed = (survival >= self.options.threshold).sum(-1).tolist()
            return [min(pair) for pair in zip(most, passed, strict=True)]
        draft_seconds = 0.0 if all(part.is_free for part in parts) else self._round.draft_seconds
        if policy == "early_stop":
            return early_stop(survival, most, seconds)
        return share_out(survival, most, self._lagged_budget(survival, most, seconds + draft_seconds))

    def _walk(
        self,
        parts: Sequence[Drafted],
        survival: np.ndarray,
        most: list[int],
        ahead: np.ndarray,
        seconds: np.ndarray,
        room: int | None,
    ) -> list[int]:
        probed = [0] * len(most)
        for part in parts:
            # Otherwise what is taken to be hopeless would never be seen to have become better.
            if self._probes(part.record) or part.record.account.is_trying:
                row = part.rows[self._num_probes % len(part.rows)] if len(most) > 1 else 0
                self._num_probes += 1
                probed[row] = most[row] if self._probes(part.record) else max(probed[row], min(1, most[row]))
        if room is not None:
            if sum(probed) > room:
                probed = [0] * len(most)
            # A walk that went on without room would have to be taken back in part, by what it has seen since.
            seconds = np.where(np.arange(len(seconds)) <= room - sum(probed), seconds, np.inf)
        lens = walk(survival, most, ahead, seconds, self._price(parts, len(most)))
        return [max(pair) for pair in zip(lens, probed, strict=True)]

    def learn(
        self,
        parts: Sequence[Drafted],
        lens: Sequence[int],
        num_judged: Sequence[int],
        num_stood: Sequence[int],
        gains: Sequence[int],
    ) -> None:
        """Look at what became of a round's drafts.

        Args:
            parts (`Sequence[Drafted]`): The sources' drafts.
            lens (`Sequence[int]`): Verified drafts of each row.
            num_judged (`Sequence[int]`): Of those, the accepted ones, and the one that was rejected, if any.
            num_stood (`Sequence[int]`): Drafts that were accepted.
            gains (`Sequence[int]`): Drafts that became output.
        """
        if self.options.policy == "fixed":
            return
        of_tokens = self._round.steps[sum(lens)] - 1
        for part in parts:
            # A source answers for the drafts that it made, and a row of it for its part of that.
            own = sum(lens[row] for row in part.rows)
            share = own / sum(lens) if any(lens) else 0.0
            extra = (of_tokens * share + self._round.draft_steps * (not part.is_free)) * len(lens) / len(part.rows)
            part.record.learn(part.rows, part.survival, lens, num_judged, num_stood)
            if self.is_auto:
                self._settled.add(part.record)
                part.record.settle(self._saved(part.rows, gains), extra)

    def cuts_pay(self, lens: Sequence[int]) -> bool:
        """Whether verifying less than `lens` drafts of the rows may save time worth anything; else survival is not
        asked for.
        """
        if self.options.policy in ("fixed", "threshold"):
            return self.options.policy == "threshold"
        return (self._round.steps[sum(lens)] - 1) * self._round.num_rows * 2 > _NEGLIGIBLE

    def _saved(self, rows: Sequence[int], gains: Sequence[int]) -> float:
        """Plain steps that the drafts of a source's rows saved, as if all rows had been its own."""
        if self._round.num_rows == 1:
            return float(gains[0])
        own = set(rows)
        without = [max(left - 1, 0) for left in self._left]
        left = [max(n - gains[row], 0) if row in own else n for row, n in enumerate(without)]
        return steps_saved(without, left) * self._round.num_rows / len(rows)

    def _expected(self, record: TrackRecord, num_rows: int, is_free: bool) -> float:
        """Speed of the best number of drafts by the source's forecast, to plain steps."""
        gains = record.forecast.gains(num_rows, record.num_slots)
        known = self._speeds.get(record)
        # Both stay the same for some rounds.
        if known is None or known[0] is not gains or known[1] is not self._round.seconds:
            known = self._speeds[record] = gains, self._round.seconds, self._round.speed(gains, is_free)
        return known[2]

    def _price(self, parts: Sequence[Drafted], num_groups: int) -> float:
        """Tokens that a second is worth, by the speed that drafting has brought."""
        speeds = []
        for part in parts:
            expected = self._expected(part.record, len(part.rows), part.is_free)
            speeds.append(part.record.speed(max(1.0, expected)))
        return max(speeds) * num_groups / self._round.seconds[0]

    def _lagged_budget(self, survival: np.ndarray, most: list[int], seconds: np.ndarray) -> int:
        """The best number of drafts by the survival of two rounds before; rounds without such have all verified."""
        before = self._earlier[0] if len(self._earlier) == 2 else None
        self._earlier.append((len(most), np.sort(survival, axis=None)[::-1]))
        if before is None:
            return sum(most)
        num_rows, values = before
        scale = len(most) / num_rows
        known = np.arange(len(values) + 1) * scale
        gains = np.interp(np.arange(sum(most) + 1), known, np.concatenate([[0.0], values.cumsum() * scale]))
        return best_count(len(most), gains, seconds[: len(gains)])[0]

    def _probes(self, record: TrackRecord) -> bool:
        """Whether this round a row of the source has its whole block verified, whatever is expected of it."""
        return record.num_drafted % self.options.probe_interval == self.options.probe_interval - 1


def _of_all(parts: Sequence[Drafted], num_rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Survival, and each slot's chance if all before it stand: `(rows, width)`, 0 and 1 where there is no draft."""
    first = parts[0]
    if num_rows == 1 and first.survival.shape[1] >= width:
        return first.survival[:, :width], np.array([first.record.forecast.rates()[:width]])
    survival, ahead = np.zeros((num_rows, width)), np.ones((num_rows, width))
    for part in parts:
        own = part.survival[part.rows, :width]
        survival[part.rows, : own.shape[1]] = own
        rates = part.record.forecast.rates()[:width]
        ahead[part.rows, : len(rates)] = rates
    return survival, ahead
