"""A DSpark drafter whose rounds go through `torch.compile`.

Shapes: B batch, T tokens, L taps, E hidden size, V vocabulary, n slots.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dspark_hf.ops.dispatch import kernel_for

from .compiling import compiled, mark_open, open_sizes
from .context import DraftState, TracedState
from .drafting import PickFn, Proposal


class CompiledDrafter:
    """Stands in for a [`DSparkModel`] in the decoding loop and runs its rounds through `torch.compile`.

    All rounds have one shape: the whole block is drafted and then cut, and features are padded to what a round can
    add. Longer features, those of a prompt, are read as always. Where tokens are drawn or logits processed, the
    sequential head's walk through the slots is not compiled.

    Args:
        drafter ([`DSparkModel`]): The drafter.
    """

    reads_tokens = False

    def __init__(self, drafter: Any):
        self._drafter = drafter
        self.config = drafter.config

    @property
    def device(self) -> torch.device:
        """Where the drafter computes."""
        return self._drafter.device

    def start(self, batch_size: int) -> DraftState:
        """As of [`DSparkModel.start`]."""
        return self._drafter.start(batch_size)

    def extend(
        self, state: DraftState, features: Tensor, counts: Sequence[int] | None = None, ids: Tensor | None = None
    ) -> None:
        """As of [`DSparkModel.extend`]."""
        batch_size, num_tokens = features.shape[:2]
        width = self.config.num_slots + 1
        if state.is_empty or num_tokens > width:
            self._drafter.extend(state, features, counts, ids)
            return
        traced = TracedState(state, width, self.device)
        features = F.pad(features, (0, 0, 0, width - num_tokens)).contiguous()
        mark_open(features, 0)
        with open_sizes():
            compiled(_append, self._drafter)(self._drafter, traced, features)
        state.advance([num_tokens] * batch_size if counts is None else counts)

    def propose(
        self,
        state: DraftState,
        anchor_ids: Tensor,
        pick: PickFn | None = None,
        num_slots: int | None = None,
        num_candidates: int | None = None,
    ) -> Proposal:
        """As of [`DSparkModel.propose`]."""
        if state.is_empty:
            return self._drafter.propose(state, anchor_ids, pick, num_slots, num_candidates)
        traced = TracedState(state, self.config.block_size, self.device)
        # Strides of a column of the ids differ from one generation to the next.
        anchors = anchor_ids.clone(memory_format=torch.contiguous_format)
        mark_open(anchors)
        # What is compiled takes no kernel; where there is one, the walk through the slots is left to it.
        if pick is None and kernel_for("markov_block", self.device) is None:
            with open_sizes():
                ids, confidence, max_probs = compiled(_draft, self._drafter)(
                    self._drafter, traced, anchors, num_candidates
                )
            confidence = None if confidence is None else confidence[:, :num_slots]
            return Proposal(ids[:, :num_slots], None, confidence, max_probs[:, :num_slots])
        with open_sizes():
            read, logits = compiled(_draft_logits, self._drafter)(self._drafter, traced, anchors)
        best = self._drafter.best_entries(logits[:, :num_slots], num_candidates)
        return self._drafter.pick_slots(read[:, :num_slots], *best, anchor_ids, pick)


def _append(drafter: Any, state: TracedState, features: Tensor) -> None:
    drafter.append(state, features)


def _draft_logits(drafter: Any, state: TracedState, anchor_ids: Tensor) -> tuple[Tensor, Tensor]:
    hidden, read = drafter.block_hidden(state, anchor_ids)
    return read, drafter.base_logits(hidden)


def _draft(
    drafter: Any, state: TracedState, anchor_ids: Tensor, num_candidates: int | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    hidden, read = drafter.block_hidden(state, anchor_ids)
    best = drafter.best_entries(drafter.base_logits(hidden), num_candidates)
    proposal = drafter.pick_slots(read, *best, anchor_ids, None)
    return proposal.ids, proposal.confidence_logits, proposal.max_probs
