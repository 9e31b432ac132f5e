"""What a round costs in plain steps by the clock, and how many drafts are worth that.

It looks at the clock and at earlier rounds only, so it can change time and nothing else.
"""

from collections import deque
from itertools import accumulate

import torch

from dspark_hf.generation.config import SpeculationConfig

from .cost import RoundCost

# The first round of a generation lays buffers out, so its time says little about the others.
_NUM_IGNORED = 1
# Rounds from a plain step to the next: soon, in case the machine was busy at the first, then rarely.
_SECOND_PLAIN, _NEXT_PLAIN = 8, 128
# Where fewer tokens are to come, it does not pay to measure.
_MIN_LEFT = 24
# How often a draft stands if all before it do, as assumed before any was seen, and for how many drafts that counts.
_PRIOR_RATE, _PRIOR_WEIGHT = 0.7, 10
# How many of the latest drafts count in all, and how many must have been seen before drafting is given up.
_WINDOW, _MIN_JUDGED = 60, 25


class Pace(RoundCost):
    """Times rounds by their number of drafts, and counts how many drafts stand.

    A round without drafts is a plain step. One is made after two drafted rounds, another soon after, and then one in
    128, so that it is known what plain decoding takes here and now. Of several times the shortest counts: whatever
    else runs on a machine only adds to them.

    Args:
        device (`torch.device`): Where the target runs.
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._num_rounds = self._num_rows = 0
        self._plain: deque[tuple[int, float]] = deque(maxlen=2)
        self._drafted: dict[int, deque[float]] = {}
        self._num_accepted = self._num_judged = 0.0

    def limit(self, num_slots: int, num_rows: int, num_left: int) -> int:
        """How many of `num_slots` slots to draft: those that make most tokens in a plain step's time.

        None of them where the time of a plain step is to be measured. Until it is, rows together get no more drafts
        than a single row has slots, because what they cost is not known. Arguments as of [`RoundCost.limit`].
        """
        if num_left < _MIN_LEFT and not self._is_known:
            return num_slots
        if num_left >= _MIN_LEFT and self._is_due():
            return 0
        if not self._is_known:
            return max(1, num_slots // num_rows)
        values = self._values(num_slots)
        return 1 + values.index(max(values))

    def pays(self, num_slots: int) -> bool:
        if not self._is_known or self._num_judged < _MIN_JUDGED:
            return True
        return max(self._values(num_slots)) > 1

    @property
    def _is_known(self) -> bool:
        return len(self._plain) > 0 and len(self._drafted) > 0

    def _values(self, num_slots: int) -> list[float]:
        """Tokens of a row in a plain step's time, with 1 up to `num_slots` drafts a round."""
        rate = (_PRIOR_RATE * _PRIOR_WEIGHT + self._num_accepted) / (_PRIOR_WEIGHT + self._num_judged)
        num_tokens = accumulate((rate**num_drafts for num_drafts in range(1, num_slots + 1)), initial=1.0)
        return [count / self.cost(num_drafts) for num_drafts, count in enumerate(num_tokens) if num_drafts > 0]

    def extra(self, lens: list[int], is_drafted: bool) -> float:
        # A policy may have dropped all drafts that were made.
        cost = self.cost(max(*lens, int(is_drafted)))
        return super().extra(lens, is_drafted) if cost is None else cost - 1

    def cost(self, num_drafts: int) -> float | None:
        """What a round with so many drafts takes in plain steps, at least one; None while that is not known.

        Between numbers of drafts that were timed, time is taken to grow evenly, and behind them half as fast.
        """
        if not self._is_known:
            return None
        known = {0: min(seconds for _, seconds in self._plain)}
        known |= {count: min(times) for count, times in self._drafted.items()}
        below = max((count for count in known if count <= num_drafts), default=0)
        above = min((count for count in known if count >= num_drafts), default=None)
        if above is None:
            # Past the longest round that was timed less is taken to be added, since the drafter's pass is in that.
            seconds = known[below] + (known[below] - known[0]) / below * (num_drafts - below) / 2
        else:
            share = (num_drafts - below) / (above - below) if above > below else 0.0
            seconds = known[below] + share * (known[above] - known[below])
        return max(seconds / known[0], 1.0)

    def note(self, lens: list[int], seconds: float) -> None:
        num_drafts, num_rows = max(lens), len(lens)
        self._num_rounds += 1
        if self._num_rounds <= _NUM_IGNORED:
            return
        if not 0.7 * self._num_rows <= num_rows <= self._num_rows:
            # Rows have left, and fewer take less time.
            self._num_rows = num_rows
            self._plain.clear()
            self._drafted.clear()
        if num_drafts == 0:
            self._plain.append((self._num_rounds, seconds))
        else:
            self._drafted.setdefault(num_drafts, deque(maxlen=4)).append(seconds)

    def learn(self, lens: list[int], gains: list[int]) -> None:
        num_judged = sum(min(gain + 1, count) for gain, count in zip(gains, lens, strict=True))
        kept = max(0.0, 1 - num_judged / _WINDOW)
        self._num_accepted = kept * self._num_accepted + sum(gains)
        self._num_judged = kept * self._num_judged + num_judged

    def _is_due(self) -> bool:
        """Whether the time of a plain step is to be measured."""
        if not self._plain:
            return bool(self._drafted)
        age = self._num_rounds - self._plain[-1][0]
        return age >= (_SECOND_PLAIN if len(self._plain) == 1 else _NEXT_PLAIN)


def round_cost(speculation: SpeculationConfig, device: torch.device) -> RoundCost:
    """What rounds of a target on `device` are taken to cost, by the clock or by estimate, as the caller wants it."""
    if speculation.cost_aware:
        return Pace(device)
    is_open = speculation.max_draft_len is None and speculation.confidence_threshold == 0
    return RoundCost(device, limits_drafts=is_open and speculation.safety_net)
