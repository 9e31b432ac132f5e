"""The sequential stage in torch: what the kernel is held to, and what runs elsewhere."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dspark_hf.ops.verify import draw

from .weights import BlockHeads, DraftedBlock


def markov_block(
    logits: Tensor,
    entries: Tensor,
    anchor_ids: Tensor,
    hidden: Tensor,
    heads: BlockHeads,
    temperature: float | None,
    place_of: Callable[[Tensor, int], Tensor],
) -> DraftedBlock:
    """As of [`dspark_hf.ops.markov_block.markov_block`], drawing by `place_of(probs [B, k], slot)`."""
    prev_ids, previous, columns, drawn_from, max_probs = anchor_ids, [], [], [], []
    for slot in range(logits.shape[1]):
        previous.append(heads.embedding[prev_ids.clamp_max(heads.embedding.shape[0] - 1)])
        # k rows of W2 in place of all.
        rows = heads.weight[entries[:, slot]]
        scores = logits[:, slot] + torch.bmm(rows, previous[-1].unsqueeze(-1)).squeeze(-1)
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if temperature is None:
            # The index of max() is that of argmax(), which is several times as slow in bfloat16 on a CPU.
            places = scores.max(-1).indices
            max_probs.append((exact.amax(-1) - exact.logsumexp(-1)).exp())
        else:
            probs = (exact / temperature).softmax(-1)
            # Rounding may leave no weight behind the last.
            places = place_of(probs, slot).clamp_max_(probs.shape[-1] - 1)
            drawn_from.append(probs)
            max_probs.append(probs.amax(-1))
        chosen = entries[:, slot].gather(1, places.unsqueeze(1)).squeeze(1)
        prev_ids = chosen if heads.draft_tokens is None else heads.draft_tokens[chosen]
        columns.append(prev_ids)
    confidence = None
    if heads.confidence_weight is not None:
        inputs = (
            torch.cat([hidden, torch.stack(previous, 1)], -1) if heads.reads_embedding(hidden.shape[-1]) else hidden
        )
        confidence = F.linear(inputs, heads.confidence_weight, heads.confidence_bias).squeeze(-1)
    probs = torch.stack(drawn_from, 1) if drawn_from else None
    return DraftedBlock(torch.stack(columns, 1), probs, torch.stack(max_probs, 1), confidence)


def draws(generator: torch.Generator | None) -> Callable[[Tensor, int], Tensor]:
    """Draws for [`markov_block`] by a `generator`, or by torch's own."""
    return lambda probs, _: draw(probs, generator)
