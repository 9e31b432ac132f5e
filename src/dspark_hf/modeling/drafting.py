"""What a drafter hands over: a block's proposal while decoding, a batch of blocks and its loss while training."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dspark_hf.ops.candidates import Candidates

PickFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""`pick(logits [B, k], token_ids [B, k], drafted_ids [B, n]) -> (places [B] among k, probs [B, k] float32 or None)`"""


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
