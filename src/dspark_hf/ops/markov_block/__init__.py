"""The sequential stage of a block: each slot's logits get a bias from the token before it (paper, section 3.2).

Shapes: B batch, n slots, k candidates, D draft vocabulary, E hidden size, r rank.
"""

import torch
from torch import Tensor

from dspark_hf.ops.counter_random import draw_key
from dspark_hf.ops.dispatch import kernel_for

from . import reference
from .weights import BlockHeads, DraftedBlock


def markov_block(
    logits: Tensor,
    entries: Tensor,
    anchor_ids: Tensor,
    hidden: Tensor,
    heads: BlockHeads,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> DraftedBlock:
    """Choose a block's tokens from left to right: `logits + W2 W1[x_{k-1}]`, of each slot's candidates alone.

    Args:
        logits (`torch.Tensor` of shape `(batch, slots, k)`): The output head's logits of the candidates.
        entries (`torch.LongTensor` of shape `(batch, slots, k)`): The candidates, as entries of the draft vocabulary.
        anchor_ids (`torch.LongTensor` of shape `(batch,)`): The token before the block.
        hidden (`torch.Tensor` of shape `(batch, slots, hidden)`): Block states that the confidence head reads.
        heads ([`BlockHeads`]): The heads' weights.
        temperature (`float`, *optional*): Draws from the softmax of biased logits divided by it; without it the most
            likely token is taken.
        generator (`torch.Generator`, *optional*): Source of randomness.

    Returns:
        [`DraftedBlock`].

    Raises:
        `ValueError`: If logits and entries have not one shape, or there is no slot.
    """
    if logits.shape != entries.shape or logits.ndim != 3 or logits.shape[1] == 0:
        raise ValueError(
            f"logits and entries must both be (batch, slots, k) with a slot or more, got {tuple(logits.shape)} and "
            f"{tuple(entries.shape)}."
        )
    kernel = kernel_for("markov_block", logits.device)
    if kernel is not None and kernel.covers(logits, hidden, heads):
        key = None if temperature is None else draw_key(generator, logits.device)
        return kernel.markov_block(logits, entries, anchor_ids, hidden, heads, temperature, key)
    return reference.markov_block(logits, entries, anchor_ids, hidden, heads, temperature, reference.draws(generator))


__all__ = ["BlockHeads", "DraftedBlock", "markov_block"]
