"""The walk through a block's slots as one op, for the vanilla sequential head.

Shapes: B batch, n slots, k candidates, E hidden size.
"""

from typing import Any

from torch import Tensor, nn

from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.markov_block import BlockHeads, markov_block

from .drafting import PickFn, PlainDraw, Proposal
from .heads.markov import MarkovHead


def walk_block(
    drafter: Any, hidden: Tensor, logits: Tensor, entries: Tensor | None, anchor_ids: Tensor, pick: PickFn | None
) -> Proposal | None:
    """A block by [`~ops.markov_block.markov_block`], or None where slots must be gone through one by one.

    That is so with another head, with one that an adapter or a quantiser has replaced, with processors other than a
    temperature, and where all tokens are candidates.

    Args:
        drafter ([`DSparkModel`]): The drafter.
        hidden (`torch.Tensor` of shape `(batch, slots, hidden)`): Block states that the heads read.
        logits (`torch.Tensor` of shape `(batch, slots, k)`): The output head's logits of each slot's candidates.
        entries (`torch.LongTensor` of shape `(batch, slots, k)`, *optional*): The candidates.
        anchor_ids (`torch.LongTensor` of shape `(batch,)`): The last known token of each row.
        pick (`Callable`, *optional*): As of [`DSparkModel.propose`].

    Returns:
        [`Proposal`] or `None`.
    """
    is_plain = pick is None or isinstance(pick, PlainDraw)
    heads = _plain_heads(drafter, hidden.shape[-1]) if is_plain and entries is not None else None
    if heads is None:
        return None
    draws = {} if pick is None else {"temperature": pick.temperature, "generator": pick.generator_of(logits.device)}
    block = markov_block(logits, entries, anchor_ids, hidden, heads, **draws)
    candidates = None
    if block.probs is not None:
        candidates = Candidates(entries if heads.draft_tokens is None else heads.draft_tokens[entries], block.probs)
    return Proposal(block.ids, candidates, block.confidence_logits, block.max_probs)


def _plain_heads(drafter: Any, hidden_size: int) -> BlockHeads | None:
    """The heads' weights, where they are all that the heads compute with."""
    head, confidence = drafter.markov_head, drafter.confidence_head
    if (
        type(head) is not MarkovHead
        or type(head.markov_w1) is not nn.Embedding
        or type(head.markov_w2) is not nn.Linear
    ):
        return None
    if confidence is None:
        return BlockHeads(head.markov_w1.weight, head.markov_w2.weight, drafter.draft_tokens)
    if type(confidence.proj) is not nn.Linear:
        return None
    weight, bias = confidence.proj.weight, confidence.proj.bias
    return BlockHeads(head.markov_w1.weight, head.markov_w2.weight, drafter.draft_tokens, weight, bias)
