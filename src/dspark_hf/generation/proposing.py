"""What is offered to a round's verification: the drafter's proposal, cut by the length policy.

Shapes: B rows at work, n drafts of a round, V vocabulary, L taps, E hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dspark_hf.modeling.drafting import Proposal
from dspark_hf.ops.verify import survival

from .context import PendingContext
from .policy import FixedLength
from .sampling import TokenChooser
from .stats import Stopwatch
from .transcript import Transcript


@dataclass
class Offer:
    """Drafts for one verification.

    Attributes:
        ids (`torch.LongTensor` of shape `(rows, n)`): Drafted tokens; behind a row's drafts stands padding.
        probs (`torch.FloatTensor` of shape `(rows, n, vocab)`, *optional*): What they were drawn from; None in greedy
            decoding, and without drafts.
        lens (`list[int]`): How many drafts each row is offered.
        confidence_logits (`torch.Tensor` of shape `(rows, slots)`, *optional*): The drafter's, of all it drafted.
    """

    ids: Tensor
    probs: Tensor | None
    lens: list[int]
    confidence_logits: Tensor | None = None


class Proposer:
    """Makes the offers of one generation.

    Args:
        drafter ([`DSparkModel`]): The drafter.
        policy ([`FixedLength`]): Decides how many drafts are verified.
        chooser ([`TokenChooser`]): Picks draft tokens.
        transcript ([`Transcript`]): The tokens so far.
        watch ([`Stopwatch`]): Measures the drafter.
        context ([`PendingContext`]): What the drafter has read.
        is_synced (`bool`): Whether every round must run the drafter, because its embedding and head are sharded.
    """

    def __init__(
        self,
        drafter: Any,
        policy: FixedLength,
        chooser: TokenChooser,
        transcript: Transcript,
        watch: Stopwatch,
        context: PendingContext,
        is_synced: bool = False,
    ):
        self._drafter = drafter
        self._policy = policy
        self._chooser = chooser
        self._transcript = transcript
        self._watch = watch
        self._context = context
        self._is_synced = is_synced
        self._num_slots = policy.limit(drafter.config.num_slots)

    def propose(self) -> Offer:
        """Draft what the rows have room for."""
        transcript = self._transcript
        live = transcript.live
        # A round makes one token more than it has drafts.
        limits = [
            min(self._num_slots, left - 1) if is_live else 0
            for left, is_live in zip(transcript.num_left, live, strict=True)
        ]
        if max(limits) == 0:
            self.idle()
            return Offer(transcript.ids[:, :0], None, limits)
        with self._watch.part("drafter"):
            # Some drafters use embedding and head once a slot.
            proposal = self._draft(self._num_slots if self._is_synced else max(limits))
            lens = limits
            if self._policy.needs_survival:
                lens = self._policy.choose(limits, survival(proposal.confidence_logits))
        if transcript.in_step:
            # No row can use more drafts than the shortest offer.
            lens = [min(n for n, is_live in zip(lens, live, strict=True) if is_live)] * len(live)
        return self._offer(proposal, lens)

    def idle(self) -> None:
        """Run the drafter for the sake of other processes, if there are any."""
        if self._is_synced:
            anchor_ids = self._transcript.anchor_ids.to(self._drafter.device)
            self._drafter.propose(self._context.state(), anchor_ids, num_slots=self._num_slots)

    def _draft(self, num_slots: int) -> Proposal:
        transcript = self._transcript
        return self._drafter.propose(
            self._context.state(),
            transcript.anchor_ids.to(self._drafter.device),
            num_slots=num_slots,
            pick=self._chooser.draft_picker(transcript.ids, transcript.lens, transcript.row_ids),
        )

    def _offer(self, proposal: Proposal, lens: list[int]) -> Offer:
        transcript, num_drafts = self._transcript, max(lens)
        ids = proposal.ids[:, :num_drafts].to(transcript.ids.device)
        if not all(transcript.live):
            # What plain generate() feeds to rows that have ended.
            is_live = torch.tensor(transcript.live, device=ids.device).unsqueeze(1)
            ids = torch.where(is_live, ids, transcript.pad_id)
        has_probs = proposal.probs is not None and num_drafts > 0
        return Offer(ids, proposal.probs[:, :num_drafts] if has_probs else None, lens, proposal.confidence_logits)
