"""A net under drafting: where next to nothing is accepted, generation goes on without drafts and tries again rarely.

It looks at earlier rounds only, so it can change time and nothing else.
"""

import warnings
import weakref
from typing import Any

from torch import Tensor

from dspark_hf.generation.tokens.transcript import Transcript

# Plain steps. A drafter that gets one first slot in three right seldom fails often enough in a row to use it up.
_CREDIT, _MOST = 2.0, 6.0
# Above it whole blocks are drafted, below single drafts.
_WHOLE_BLOCKS = 1.0
# The first pause is so much longer than what a try costs, which is then 1% of it.
_PAUSE_PER_STEP, _SHORTEST_PAUSE, _LONGEST_PAUSE = 100, 16, 256

_MIN_JUDGED, _MOST_FIRSTS = 8, 20
_COLLAPSED_RATE = 0.05
_SHIFTED_RATE = 0.25


class SafetyNet:
    """Decides how many slots may be drafted, from what earlier rounds won.

    An account starts with credit for 2 plain steps. A drafted round costs what it takes longer than a plain step; a
    draft that stands earns the step that it saves. While the account is low only one slot is drafted, which costs
    little. When it is empty, or drafting is known not to pay, it pauses, after which a single draft is tried; each
    failure doubles the pause, up to 256 rounds.

    The first pause is 100 times as long as what a try costs in plain steps. A drafter that never hits and takes 1 + x
    plain steps a block thus wastes at most 2 + x of them until the first pause, and 1% of the steps behind it.

    Args:
        enabled (`bool`): Otherwise every slot may be drafted always.
    """

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        self._balance: float = _CREDIT
        self._pause = _SHORTEST_PAUSE
        self._num_paused = 0
        self.was_paused = False
        self.has_paused = False

    def limit(self, num_slots: int) -> int:
        """How many of `num_slots` slots may be drafted in this round."""
        if not self._enabled or self._balance > _WHOLE_BLOCKS:
            return num_slots
        self.was_paused = self._balance <= 0 and self._num_paused < self._pause
        return 0 if self.was_paused else 1

    def learn(self, gains: list[int], extra: float, pays: bool = True) -> None:
        """Settle a round's account.

        Args:
            gains (`list[int]`): Drafts that became output, of each row that was drafted for.
            extra (`float`): Plain steps that the round took beyond one.
            pays (`bool`, *optional*, defaults to `True`): False to pause without waiting for the account to be empty.
        """
        if self.was_paused:
            self._num_paused += 1
        elif gains:
            self._book(sum(gains) / len(gains) - extra, extra, pays)

    def _book(self, won: float, extra: float, pays: bool) -> None:
        is_probe = self._balance <= 0
        self._balance = min(max(self._balance, 0.0) + won, _MOST if pays else 0.0)
        if self._balance <= 0:
            first = max(_SHORTEST_PAUSE, round(_PAUSE_PER_STEP * extra))
            self._pause = min(2 * self._pause if is_probe else first, _LONGEST_PAUSE)
            self._num_paused = 0
            self.has_paused = self._enabled


class CollapseWarning:
    """Says once per drafter that its drafts are not accepted, how few were, and why that may be.

    Args:
        drafter ([`DSparkModel`]): The drafter.
        transcript ([`Transcript`]): The tokens so far.
        is_blind (`bool`): Whether drafts are made without some of the logits processors.
    """

    _told: "weakref.WeakSet[Any]" = weakref.WeakSet()

    def __init__(self, drafter: Any, transcript: Transcript, is_blind: bool = False):
        self._drafter, self._is_blind = drafter, is_blind
        self._transcript = transcript
        self._num_judged = self._num_accepted = 0
        # First drafts with their places, to see whether they would fit elsewhere.
        self._firsts: list[tuple[list[int], list[int], Tensor]] = []
        self._is_over = drafter in self._told

    def learn(
        self, draft_ids: Tensor, judged: list[bool], accepted_lens: list[int], num_taken: list[int], has_paused: bool
    ) -> None:
        """Count a verification's first slots, and warn when drafting has paused and hardly any was right.

        Args:
            draft_ids (`torch.LongTensor` of shape `(rows, n)`): The drafts.
            judged (`list[bool]`): Rows whose first slot came from the drafter and was verified.
            accepted_lens (`list[int]`): Drafts that stood, of each row.
            num_taken (`list[int]`): Tokens that each row took.
            has_paused (`bool`): Whether the net has let go of drafting.
        """
        if self._is_over or not any(judged):
            return
        rows = [row for row, is_judged in enumerate(judged) if is_judged]
        self._num_judged += len(rows)
        self._num_accepted += sum(accepted_lens[row] > 0 for row in rows)
        if len(self._firsts) < _MOST_FIRSTS:
            starts = [self._transcript.lens[row] - num_taken[row] for row in rows]
            self._firsts.append(([self._transcript.row_ids[row] for row in rows], starts, draft_ids[rows, 0]))
        rate = self._num_accepted / self._num_judged
        if has_paused and self._num_judged >= _MIN_JUDGED and rate < _COLLAPSED_RATE:
            self._is_over = True
            self._told.add(self._drafter)
            warnings.warn(self._message(rate), stacklevel=2)

    def _message(self, rate: float) -> str:
        return (
            f"Hardly any draft is accepted: {self._num_accepted} of {self._num_judged} at the first slot "
            f"({rate:.1%}), where a drafter that fits reaches 30% and more. {self._cause()} The output is not "
            "affected; generation goes on without drafts and tries one now and then. "
            "SpeculationConfig(safety_net=False) keeps drafting."
        )

    def _cause(self) -> str:
        for shift, where in ((1, "later"), (-1, "earlier")):
            rate = self._rate_at(shift)
            if rate >= _SHIFTED_RATE:
                # Layers that have learned nothing pass their input on.
                untrained = " Or it was hardly trained, and repeats the last token." if shift < 0 else ""
                return (
                    f"{rate:.0%} of these drafts fit one place {where}, so the drafter probably counts slots in "
                    f"another way than its config says: check sample_from_anchor.{untrained}"
                )
        if self._is_blind:
            return "Drafts are made without custom logits processors and guidance, which probably want other tokens."
        name = getattr(self._drafter.config, "target_name_or_path", None) or "an unnamed target"
        return f"Probably this drafter (made for {name}) belongs to another target, or was hardly trained."

    def _rate_at(self, shift: int) -> float:
        """How many first drafts equal the token that stands `shift` places behind theirs, as far as known."""
        ids, lens = self._transcript.ids.tolist(), self._transcript.lens
        rows = {row_id: row for row, row_id in enumerate(self._transcript.row_ids)}
        fits = [
            ids[rows[row_id]][start + shift] == token
            for row_ids, starts, first_ids in self._firsts
            for row_id, start, token in zip(row_ids, starts, first_ids.tolist(), strict=True)
            if row_id in rows and start + shift < lens[rows[row_id]]
        ]
        return sum(fits) / len(fits) if fits else 0.0
