"""What a drafter hands over: a block's proposal and how it comes about while decoding, a batch of blocks and its loss
while training.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.verify import draw

from .vocabulary import tokens_of

PickFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""`pick(logits [B, k], token_ids [B, k], drafted_ids [B, n]) -> (places [B] among k, probs [B, k] float32 or None)`"""


@dataclass(frozen=True)
class PlainDraw:
    """A [`PickFn`] that draws at a temperature and does nothing else, so that a whole block can be drawn at once.

    Attributes:
        temperature (`float`): What logits are divided by.
        generator_of (`Callable`): The source of randomness on a device; None stands for torch's own.
    """

    temperature: float
    generator_of: Callable[[torch.device], torch.Generator | None]

    def __call__(self, logits: Tensor, token_ids: Tensor, drafted_ids: Tensor) -> tuple[Tensor, Tensor]:
        """As of [`PickFn`]."""
        probs = (logits.float() / self.temperature).softmax(-1)
        return draw(probs, self.generator_of(probs.device)).clamp_max_(probs.shape[-1] - 1), probs


@dataclass
class Proposal:
    """The tokens of one block.

    Attributes:
        ids (`torch.LongTensor` of shape `(batch, slots)`): Drafted tokens.
        candidates ([`Candidates`] of shape `(batch, slots, k)`, *optional*):
            What `ids` were drawn from; None where drafting is greedy.
        confidence_logits (`torch.Tensor` of shape `(batch, slots)`, *optional*):
            Logits of P(slot accepted | all earlier accepted).
        max_probs (`torch.FloatTensor` of shape `(batch, slots)`, *optional*):
            Largest probability of each slot's distribution, which is known before its token is; without the caller's
            processors and temperature where drafting is greedy.
    """

    ids: Tensor
    candidates: Candidates | None = None
    confidence_logits: Tensor | None = None
    max_probs: Tensor | None = None


class BlockDraft:
    """A block whose tokens are chosen slot by slot, from left to right.

    Args:
        anchor_ids (`torch.LongTensor` of shape `(batch,)`): The tokens before the block.
        num_slots (`int`): Slots to fill.
        pick (`Callable`, *optional*): Chooses among a slot's candidates, see [`PickFn`]. Without it the most likely
            token is taken.
        draft_tokens (`torch.LongTensor` of shape `(draft_vocab,)`, *optional*): The token of each entry of the draft
            vocabulary; entries are tokens, if not given.

    Attributes:
        ids (`torch.LongTensor` of shape `(batch, num_slots)`): Tokens of the slots filled so far.
    """

    def __init__(self, anchor_ids: Tensor, num_slots: int, pick: PickFn | None, draft_tokens: Tensor | None):
        self.ids = anchor_ids.new_empty(anchor_ids.shape[0], num_slots)
        self._pick, self._draft_tokens = pick, draft_tokens
        self._drawn_from: list[Candidates] = []
        self._max_probs: list[Tensor] = []

    def choose(self, logits: Tensor, entries: Tensor | None) -> Tensor:
        """Fill the next slot.

        Args:
            logits (`torch.Tensor` of shape `(batch, k)`): Of the slot's candidates.
            entries (`torch.LongTensor` of shape `(batch, k)`, *optional*): Their entries of the draft vocabulary; all
                of it, if not given.

        Returns:
            `torch.LongTensor` of shape `(batch,)`: The tokens chosen.
        """
        slot, probs = len(self._max_probs), None
        if self._pick is None:
            # The index of max() is that of argmax(), which is several times as slow in bfloat16 on a CPU.
            places = logits.max(-1).indices
        else:
            token_ids = tokens_of(entries, logits, self._draft_tokens)
            places, probs = self._pick(logits, token_ids, self.ids[:, :slot])
        chosen = places if entries is None else entries.gather(1, places.unsqueeze(1)).squeeze(1)
        self.ids[:, slot] = ids = tokens_of(chosen, logits, self._draft_tokens)
        if probs is None:
            logits = logits.float()
            self._max_probs.append((logits.amax(-1) - logits.logsumexp(-1)).exp())
        else:
            self._drawn_from.append(Candidates(token_ids, probs))
            self._max_probs.append(probs.amax(-1))
        return ids

    def proposal(self, confidence_logits: Tensor | None = None) -> Proposal:
        """The block with all slots filled.

        Args:
            confidence_logits (`torch.Tensor` of shape `(batch, num_slots)`, *optional*): Those of [`Proposal`].

        Returns:
            [`Proposal`].
        """
        candidates = Candidates.stack(self._drawn_from) if self._drawn_from else None
        return Proposal(self.ids, candidates, confidence_logits, torch.stack(self._max_probs, 1))


@dataclass
class BlockOutput:
    """The blocks of a training batch, before the vocabulary: `logits = hidden @ lm_head.T + markov_states @ W2.T`.

    Attributes:
        hidden (`torch.Tensor` of shape `(batch, anchors, slots, hidden)`): Block hidden states after the final norm.
        markov_states (`torch.Tensor` of shape `(batch, anchors, slots, rank)`, *optional*): The sequential head's `m`.
        confidence_logits (`torch.Tensor` of shape `(batch, anchors, slots)`, *optional*): Confidence logits.
    """

    hidden: Tensor
    markov_states: Tensor | None = None
    confidence_logits: Tensor | None = None


@dataclass(frozen=True)
class LossWeights:
    """The terms of a drafter's training loss (paper, section 3.4).

    Attributes:
        ce_weight (`float`): Weight of the cross-entropy.
        tv_weight (`float`): Weight of the L1 distance between draft and target.
        confidence_weight (`float`): Weight of the confidence head's BCE.
        soft_ce_weight (`float`): Weight of the cross-entropy to the target's distribution.
        slot_decay (`float`): Slot k weighs `exp(-(k - 1) / slot_decay)`.
    """

    ce_weight: float = 0.1
    tv_weight: float = 0.9
    confidence_weight: float = 1.0
    soft_ce_weight: float = 0.0
    slot_decay: float = 4.0
