"""Verification of a drafted block: which drafts stand, and which token follows them.

Shapes: B batch, n offered slots, V vocabulary. Row b is offered `lengths[b] <= n` slots; what lies beyond is padding.
Nothing here waits for the device.
"""

import torch
from torch import Tensor


def verify_greedy(draft_ids: Tensor, target_ids: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Accept the longest prefix of each block that equals the target's own choices.

    Args:
        draft_ids (`torch.LongTensor` of shape `(batch, slots)`): Drafted tokens.
        target_ids (`torch.LongTensor` of shape `(batch, slots + 1)`):
            The target's choice at every position of the block, and after it.
        lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Slots offered per row; all, if not given.

    Returns:
        `tuple(torch.LongTensor, torch.LongTensor)`: `accepted_len` `(batch,)`, and `next_ids` `(batch,)`, the target's
        own token after the accepted ones.

    Raises:
        `ValueError`: If the shapes do not belong together.
    """
    _check_shapes(draft_ids, target_ids)
    accepted_len = _count_leading(draft_ids == target_ids[:, :-1], lengths)
    return accepted_len, target_ids.gather(1, accepted_len.unsqueeze(1)).squeeze(1)


def verify_sampled(
    draft_ids: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    lengths: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Accept a prefix of each block and draw the next token, so that tokens follow `target_probs` exactly.

    Args:
        draft_ids (`torch.LongTensor` of shape `(batch, slots)`): Drafted tokens.
        draft_probs (`torch.FloatTensor` of shape `(batch, slots, vocab)`, *optional*):
            The very tensor that `draft_ids` were drawn from, float32. May be None only without slots.
        target_probs (`torch.FloatTensor` of shape `(batch, slots + 1, vocab)`): The target's distributions, float32.
        lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Slots offered per row; all, if not given.
        generator (`torch.Generator`, *optional*): Source of randomness.

    Returns:
        `tuple(torch.LongTensor, torch.LongTensor)`: `accepted_len` `(batch,)` and `next_ids` `(batch,)`.

    Raises:
        `ValueError`: If the shapes do not belong together.

    Source: Leviathan et al. 2023, algorithm 1 (https://arxiv.org/abs/2211.17192).
    """
    _check_shapes(draft_ids, target_probs)
    batch_size, num_slots = draft_ids.shape
    if num_slots == 0:
        return draft_ids.new_zeros(batch_size), draw(target_probs[:, 0], generator)
    if draft_probs is None or draft_probs.shape != target_probs[:, :-1].shape:
        got = None if draft_probs is None else tuple(draft_probs.shape)
        raise ValueError(
            f"draft_probs must be the distributions that the drafts were drawn from, of shape "
            f"{tuple(target_probs[:, :-1].shape)} like the target's, got {got}."
        )
    drawn_p = target_probs[:, :-1].gather(-1, draft_ids.unsqueeze(-1)).squeeze(-1)  # [B, n]
    drawn_q = draft_probs.gather(-1, draft_ids.unsqueeze(-1)).squeeze(-1)
    accepted_len = _count_leading(_accept(drawn_p, drawn_q, generator), lengths)

    rows = torch.arange(batch_size, device=draft_ids.device)
    p = target_probs[rows, accepted_len]  # [B, V]
    q = draft_probs[rows, accepted_len.clamp_max(num_slots - 1)]
    # After the last offered slot nothing was rejected: the next token is the target's own.
    rejected = accepted_len < (num_slots if lengths is None else lengths)
    return accepted_len, draw(residual(p, torch.where(rejected.unsqueeze(-1), q, 0.0)), generator)


def accept_or_redraw(
    draft_ids: Tensor, draft_probs: Tensor, target_probs: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """One slot of [`verify_sampled`], for callers that must look at each token before the next is judged.

    Args:
        draft_ids (`torch.LongTensor` of shape `(batch,)`): Drafted tokens.
        draft_probs (`torch.FloatTensor` of shape `(batch, vocab)`): What they were drawn from.
        target_probs (`torch.FloatTensor` of shape `(batch, vocab)`): The target's distribution.
        generator (`torch.Generator`, *optional*): Source of randomness.

    Returns:
        `tuple(torch.LongTensor, torch.BoolTensor)`: The token of each row, and whether it is the draft.
    """
    drawn_p = target_probs.gather(-1, draft_ids.unsqueeze(-1)).squeeze(-1)  # [B]
    drawn_q = draft_probs.gather(-1, draft_ids.unsqueeze(-1)).squeeze(-1)
    accepted = _accept(drawn_p, drawn_q, generator)
    return torch.where(accepted, draft_ids, draw(residual(target_probs, draft_probs), generator)), accepted


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """Weights `max(p - q, 0)` of the token that replaces a rejected draft; `p` itself where rounding left nothing.

    Args:
        target_probs (`torch.FloatTensor` of shape `(batch, vocab)`): p.
        draft_probs (`torch.FloatTensor` of shape `(batch, vocab)`): q.

    Returns:
        `torch.FloatTensor` of shape `(batch, vocab)`, not normalised.
    """
    weights = (target_probs - draft_probs).clamp_min_(0)
    # False for a q that is not finite, too: no draft was accepted against it, so p is right.
    is_usable = weights.sum(-1, keepdim=True) > torch.finfo(weights.dtype).tiny
    return torch.where(is_usable, weights, target_probs)


def draw(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token of each row, in proportion to its weight.

    Args:
        weights (`torch.FloatTensor` of shape `(batch, vocab)`): Not negative; they need not sum to 1.
        generator (`torch.Generator`, *optional*): Source of randomness.

    Returns:
        `torch.LongTensor` of shape `(batch,)`; `vocab` where a row's weights are not finite or all zero, for the
        caller to find without waiting for the device here.
    """
    # One uniform number a row, where torch.multinomial draws one for every token: 20 times as fast at V = 49,152 on a
    # CPU. The first sum above the threshold belongs to a token of positive weight.
    sums = weights.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    uniform = torch.rand((weights.shape[0], 1), generator=generator, device=weights.device, dtype=torch.float64)
    # The product may round up to the total, which no sum exceeds.
    threshold = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, threshold, right=True).squeeze(1)


def survival(confidence_logits: Tensor) -> Tensor:
    """Probability that a slot and all before it are accepted (paper, section 3.3).

    Args:
        confidence_logits (`torch.Tensor` of shape `(batch, slots)`): Logits of P(slot accepted | all before accepted).

    Returns:
        `torch.FloatTensor` of shape `(batch, slots)`, falling from slot to slot.
    """
    return confidence_logits.float().sigmoid().cumprod(-1)


def _accept(drawn_p: Tensor, drawn_q: Tensor, generator: torch.Generator | None) -> Tensor:
    uniform = torch.rand(drawn_p.shape, generator=generator, device=drawn_p.device, dtype=drawn_p.dtype)
    # u < p / q, strictly and without the division: a token of probability zero never passes.
    return uniform * drawn_q < drawn_p


def _count_leading(passed: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is not None:
        passed = passed & (torch.arange(passed.shape[1], device=passed.device) < lengths.unsqueeze(1))
    return passed.long().cumprod(-1).sum(-1)


def _check_shapes(draft_ids: Tensor, target: Tensor) -> None:
    if draft_ids.ndim != 2 or target.shape[:2] != (draft_ids.shape[0], draft_ids.shape[1] + 1):
        raise ValueError(
            f"A block of n drafts is verified against n + 1 positions of the target, got drafts of shape "
            f"{tuple(draft_ids.shape)} and target positions of shape {tuple(target.shape[:2])}."
        )
