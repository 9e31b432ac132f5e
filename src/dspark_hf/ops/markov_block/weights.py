"""What the sequential stage reads beside a block's states, and what it writes.

Shapes: B batch, n slots, k candidates, V vocabulary, D draft vocabulary, E hidden size, r rank.
"""

from typing import NamedTuple

from torch import Tensor


class BlockHeads(NamedTuple):
    """Weights of the vanilla sequential head and of the confidence head, all in one dtype.

    Attributes:
        embedding (`torch.Tensor` of shape `(vocab, rank)`): W1. Tokens behind its last row take that one.
        weight (`torch.Tensor` of shape `(draft_vocab, rank)`): W2.
        draft_tokens (`torch.LongTensor` of shape `(draft_vocab,)`, *optional*): The token of each entry; entries are
            tokens, if not given.
        confidence_weight (`torch.Tensor` of shape `(1, hidden)` or `(1, hidden + rank)`, *optional*): Of the
            confidence head, if there is one.
        confidence_bias (`torch.Tensor` of shape `(1,)`, *optional*): Its bias.
    """

    embedding: Tensor
    weight: Tensor
    draft_tokens: Tensor | None = None
    confidence_weight: Tensor | None = None
    confidence_bias: Tensor | None = None

    def reads_embedding(self, hidden_size: int) -> bool:
        """Whether the confidence head reads `W1[x_{k-1}]` behind states of width `hidden_size`."""
        return self.confidence_weight is not None and self.confidence_weight.shape[1] > hidden_size


class DraftedBlock(NamedTuple):
    """A block.

    Attributes:
        ids (`torch.LongTensor` of shape `(batch, slots)`): Tokens.
        probs (`torch.FloatTensor` of shape `(batch, slots, k)`, *optional*): The probabilities of the candidates that
            tokens were drawn from; None where the best was taken.
        max_probs (`torch.FloatTensor` of shape `(batch, slots)`): The largest of each slot, at temperature 1 where
            the best was taken.
        confidence_logits (`torch.Tensor` of shape `(batch, slots)`, *optional*): Logits of P(slot accepted | all
            before accepted), if there is a confidence head.
    """

    ids: Tensor
    probs: Tensor | None
    max_probs: Tensor
    confidence_logits: Tensor | None
