"""What is known of a drafter over all calls, and a word about one whose drafts are not accepted."""

import warnings
import weakref
from typing import Any

from torch import Tensor

from .track_record import TrackRecord

# First slots that must have been judged before a drafter is accused, and the first drafts that tell why.
_MIN_JUDGED, _MOST_FIRSTS, _MIN_FIRSTS = 16, 20, 8
_COLLAPSED_RATE = 0.05
_SHIFTED_RATE = 0.25


class Evidence:
    """What is known of a drafter on its target, from all calls so far.

    Args:
        num_slots (`int`): Slots of the drafter.
        num_rows (`int`): Rows of these calls.

    Attributes:
        record ([`TrackRecord`]): What its rounds told.
        num_judged, num_accepted (`int`): First drafts that were verified, and those of them that stood.
        firsts (`list[tuple[int, list[int], int]]`):
            Some of them, each with its row's new tokens, which grow, and its place there: it may fit elsewhere.
    """

    _known: "weakref.WeakKeyDictionary[Any, dict[Any, Evidence]]" = weakref.WeakKeyDictionary()

    def __init__(self, num_slots: int, num_rows: int) -> None:
        self.record = TrackRecord(num_slots, num_rows)
        self.num_judged = self.num_accepted = 0
        self.firsts: list[tuple[int, list[int], int]] = []

    @classmethod
    def of(cls, drafter: Any, num_slots: int, is_blind: bool, num_rows: int) -> "Evidence":
        """What is known of a drafter in such calls; forgotten when it is bound to another target.

        Args:
            drafter (`Any`): The drafter.
            num_slots (`int`): Its slots.
            is_blind (`bool`): Whether drafts are made without some of the logits processors.
            num_rows (`int`): Rows of the call.
        """
        known = cls._known.setdefault(getattr(drafter, "borrowed", drafter), {})
        return known.setdefault((num_slots, is_blind, num_rows), cls(num_slots, num_rows))


class CollapseWarning:
    """Says once per drafter that its drafts are not accepted, how few were, and why that may be.

    Args:
        drafter ([`DSparkModel`]): The drafter.
        evidence ([`Evidence`]): What earlier calls told, to which this one adds.
        is_blind (`bool`): Whether drafts are made without some of the logits processors.
    """

    _told: "weakref.WeakSet[Any]" = weakref.WeakSet()

    def __init__(self, drafter: Any, evidence: Evidence, is_blind: bool = False):
        self._drafter, self._is_blind, self._evidence = drafter, is_blind, evidence
        self._is_over = drafter in self._told

    def learn(
        self,
        draft_ids: Tensor,
        judged: list[bool],
        accepted_lens: list[int],
        num_taken: list[int],
        new_ids: list[list[int]],
        has_paused: bool,
    ) -> None:
        """Count a verification's first slots, and warn when drafting has paused and hardly any was right.

        Args:
            draft_ids (`torch.LongTensor` of shape `(rows, n)`): The drafts.
            judged (`list[bool]`): Rows whose first slot came from the drafter and was verified.
            accepted_lens (`list[int]`): Drafts that stood, of each row.
            num_taken (`list[int]`): Tokens that each row took.
            new_ids (`list[list[int]]`): New tokens of each row so far; they grow.
            has_paused (`bool`): Whether drafting was let go of.
        """
        if self._is_over or not any(judged):
            return
        rows = [row for row, is_judged in enumerate(judged) if is_judged]
        evidence = self._evidence
        evidence.num_judged += len(rows)
        evidence.num_accepted += sum(accepted_lens[row] > 0 for row in rows)
        if len(evidence.firsts) < _MOST_FIRSTS:
            for row, draft in zip(rows, draft_ids[rows, 0].tolist(), strict=True):
                ids = new_ids[row]
                evidence.firsts.append((draft, ids, len(ids) - num_taken[row]))
        rate = evidence.num_accepted / evidence.num_judged
        if has_paused and evidence.num_judged >= _MIN_JUDGED and rate < _COLLAPSED_RATE:
            self._is_over = True
            self._told.add(self._drafter)
            warnings.warn(self._message(rate), stacklevel=2)

    def _message(self, rate: float) -> str:
        return (
            f"Hardly any draft is accepted: {self._evidence.num_accepted} of {self._evidence.num_judged} at the first "
            f"slot ({rate:.1%}), where a drafter that fits reaches 30% and more. {self._cause()} "
            "`dspark diagnose TARGET DRAFTER` finds out. The output is not affected; generation goes on without "
            'drafts and tries one now and then. SpeculationConfig(policy="fixed") keeps drafting.'
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
        firsts = self._evidence.firsts
        fits = [ids[place + shift] == draft for draft, ids, place in firsts if place + shift < len(ids)]
        return sum(fits) / len(fits) if len(fits) >= _MIN_FIRSTS else 0.0
