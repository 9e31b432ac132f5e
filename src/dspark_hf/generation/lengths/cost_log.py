"""What rounds took, from call to call of a process: it corrects what passes are taken to cost.

Nothing is corrected during a call, and nothing is kept of calls that must repeat.
"""

import json
from collections import deque
from typing import Any

import numpy as np

from .step_cost import StepCost

# Tokens that a call must still be able to make, for plain steps in it to be worth their time.
_LEAST_LEFT = 48
# Drafted rounds before the first plain step, rounds from there to the next, and to those after.
_FIRST_PLAIN, _SECOND_PLAIN, _NEXT_PLAIN = 2, 8, 128
# Latest times of a size, how many there must be, and rounds after which one counts no longer.
_NUM_TIMES, _MIN_TIMES, _EXPIRY = 16, 3, 4096


class CostLog:
    """Times of the rounds of a pair of models in this process, as ratios to what a table says.

    Of a size the median of its latest times counts, so a pass that had to wait once does not matter, and times expire.
    Sizes that were not seen are corrected as those beside them. Plain steps are made at fixed intervals, and whole
    blocks are verified now and then in any case, so no size is given up for good.
    """

    _logs: "dict[str, CostLog]" = {}

    def __init__(self) -> None:
        self._verify: dict[int, deque[tuple[int, float]]] = {}
        self._draft: dict[int, deque[tuple[int, float]]] = {}
        self._num_rounds, self._num_drafted = 0, 0
        self._plain: dict[int, deque[int]] = {}

    @classmethod
    def of(cls, made_for: dict[str, Any], base: StepCost) -> "CostLog":
        """The log of some circumstances and the table that is corrected: ratios to another table tell nothing of it.

        Args:
            made_for (`dict[str, Any]`): The circumstances.
            base ([`StepCost`]): The table.
        """
        return cls._logs.setdefault(json.dumps([made_for, base.digest()], sort_keys=True), cls())

    def wants_plain(self, num_rows: int, num_left: int) -> bool:
        """Whether the next round should be a plain step, so that it is known what one takes.

        Args:
            num_rows (`int`): Rows at work.
            num_left (`int`): Tokens that the row with most of them may still make.
        """
        if num_left < _LEAST_LEFT or self._num_drafted < _FIRST_PLAIN:
            return False
        made = self._plain.get(num_rows, ())
        interval = _SECOND_PLAIN if len(made) < _MIN_TIMES else _NEXT_PLAIN
        return len(made) == 0 or self._num_rounds - made[-1] >= interval

    def note(
        self,
        base: StepCost,
        num_rows: int,
        num_tokens: int,
        context_len: int,
        verify: float,
        draft: float | None,
        plain_rows: int | None = None,
    ) -> None:
        """Note a round.

        Args:
            base ([`StepCost`]): What is corrected.
            num_rows, num_tokens, context_len (`int`): Rows, tokens of the pass, and tokens before it.
            verify (`float`): Seconds of the pass and its verdict.
            draft (`float`, *optional*): Seconds of the proposal; None where there was none.
            plain_rows (`int`, *optional*): Rows by which plain steps are counted; `num_rows`, if not given.
        """
        self._num_rounds += 1
        self._num_drafted += draft is not None
        _add(self._verify, num_tokens, self._num_rounds, verify / base.of_pass(num_tokens, context_len))
        if draft is not None and base.draft(num_rows) > 0:
            _add(self._draft, num_rows, self._num_rounds, draft / base.draft(num_rows))
        elif num_tokens == num_rows:
            rows = num_rows if plain_rows is None else plain_rows
            self._plain.setdefault(rows, deque(maxlen=_MIN_TIMES)).append(self._num_rounds)

    def corrected(self, base: StepCost) -> StepCost:
        """What passes take, by a table and the rounds so far; the table itself before enough was seen.

        Args:
            base ([`StepCost`]): What is corrected; always the same one.
        """
        verify, draft = (_ratios(times, self._num_rounds) for times in (self._verify, self._draft))
        if len(verify) < 2 or not draft:
            return base
        tokens = sorted({*base.tokens, *verify})
        ratio = np.interp(tokens, *zip(*sorted(verify.items()), strict=True))
        return base.corrected(tokens, ratio, np.interp(base.rows, *zip(*sorted(draft.items()), strict=True)))


def _add(times: dict[int, deque[tuple[int, float]]], size: int, now: int, ratio: float) -> None:
    times.setdefault(size, deque(maxlen=_NUM_TIMES)).append((now, ratio))


def _ratios(times: dict[int, deque[tuple[int, float]]], now: int) -> dict[int, float]:
    """The median ratio of each size that was seen often enough lately."""
    lately = {size: [ratio for when, ratio in seen if now - when < _EXPIRY] for size, seen in times.items()}
    return {size: float(np.median(ratios)) for size, ratios in lately.items() if len(ratios) >= _MIN_TIMES}
