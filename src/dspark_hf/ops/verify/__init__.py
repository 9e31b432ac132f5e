"""Verification of a drafted block: which drafts stand, and which token follows them.

Shapes: B batch, n offered slots, k candidates of a slot, V vocabulary. Row b is offered `lengths[b] <= n` slots; what
lies beyond is padding. Nothing here waits for the device, and no tensor of probabilities `(B, n, V)` is made.
"""

import torch
from torch import Tensor

from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.counter_random import draw_key
from dspark_hf.ops.dispatch import kernel_for

from . import reference
from .reference import Verification, block_chances, draw, residual


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
    return reference.verify_greedy(draft_ids, target_ids, lengths)


def verify_argmax(draft_ids: Tensor, target_scores: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[`verify_greedy`] against the best token of scores; positions behind a row's offer are not looked at.

    Args:
        draft_ids (`torch.LongTensor` of shape `(batch, slots)`): Drafted tokens.
        target_scores (`torch.Tensor` of shape `(batch, slots + 1, vocab)`): Logits or processed scores.
        lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Slots offered per row; all, if not given.

    Returns:
        `tuple(torch.LongTensor, torch.LongTensor)`: As of [`verify_greedy`]. Of equal scores the first counts, and a
        NaN is above all, as for `torch.argmax`.

    Raises:
        `ValueError`: If the shapes do not belong together.
    """
    _check_shapes(draft_ids, target_scores)
    kernel = kernel_for("verify", target_scores.device)
    if kernel is not None and kernel.covers(target_scores):
        return kernel.verify_argmax(draft_ids, target_scores, lengths)
    # The index of max() is that of argmax(), also at ties, and bfloat16 argmax() is 5 times as slow on a CPU.
    return reference.verify_greedy(draft_ids, target_scores.max(-1).indices, lengths)


def verify_sampled(
    draft_ids: Tensor,
    candidates: Candidates | None,
    target_scores: Tensor,
    lengths: Tensor | None = None,
    generator: torch.Generator | None = None,
    verification: Verification = "block",
) -> tuple[Tensor, Tensor]:
    """Accept a prefix of each block and draw the next token, so that tokens follow the target's distribution exactly.

    A row's length may depend on its drafts as a stopping time does: whether slot k is offered, on those before it. A
    slot whose candidates all have probability 0, or one that is not finite, ends its row's offer. So does one where
    the target has no distribution, as behind a draft after which processors ban every token.

    Args:
        draft_ids (`torch.LongTensor` of shape `(batch, slots)`): Drafted tokens.
        candidates ([`Candidates`] of shape `(batch, slots, k)`, *optional*):
            The very probabilities that `draft_ids` were drawn from. May be None only without slots.
        target_scores (`torch.Tensor` of shape `(batch, slots + 1, vocab)`):
            The target's processed scores, of which the softmax, in float32 at least, is its distribution.
        lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Slots offered per row; all, if not given.
        generator (`torch.Generator`, *optional*): Source of randomness.
        verification (`str`, *optional*, defaults to `"block"`): `"token"` judges one draft after the other, `"block"`
            by what their prefix as a whole has left of its probability, which accepts as many or more.

    Returns:
        `tuple(torch.LongTensor, torch.LongTensor)`: `accepted_len` `(batch,)` and `next_ids` `(batch,)`, which is
        `vocab` where the target has no distribution.

    Raises:
        `ValueError`: If the shapes do not belong together.

    Source: Leviathan et al. 2023, algorithm 1 (https://arxiv.org/abs/2211.17192); Sun et al. 2024, algorithm 2
    (https://arxiv.org/abs/2403.10444).
    """
    _check_shapes(draft_ids, target_scores)
    if draft_ids.shape[1] > 0 and (candidates is None or candidates.ids.shape[:2] != draft_ids.shape):
        got = None if candidates is None else tuple(candidates.ids.shape)
        raise ValueError(
            f"candidates must be what the drafts were drawn from, of shape {tuple(draft_ids.shape)} and a number for "
            f"each slot, got {got}."
        )
    kernel = kernel_for("verify", target_scores.device)
    if kernel is not None and kernel.covers(target_scores, candidates):
        key = draw_key(generator, target_scores.device)
        return kernel.verify_sampled(draft_ids, candidates, target_scores, lengths, key, verification)
    return reference.verify_sampled(draft_ids, candidates, target_scores, lengths, generator, verification)


def accept_or_redraw(
    draft_ids: Tensor, candidates: Candidates, target_scores: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """One slot of [`verify_sampled`], for callers that must look at each token before the next is judged.

    Args:
        draft_ids (`torch.LongTensor` of shape `(batch,)`): Drafted tokens.
        candidates ([`Candidates`] of shape `(batch, k)`): What they were drawn from.
        target_scores (`torch.FloatTensor` of shape `(batch, vocab)`): The target's processed scores.
        generator (`torch.Generator`, *optional*): Source of randomness.

    Returns:
        `tuple(torch.LongTensor, torch.BoolTensor)`: The token of each row, and whether it is the draft.
    """
    both = target_scores.unsqueeze(1).expand(-1, 2, -1)
    accepted_len, next_ids = verify_sampled(
        draft_ids.unsqueeze(1), candidates[:, None], both, None, generator, verification="token"
    )
    accepted = accepted_len == 1
    return torch.where(accepted, draft_ids, next_ids), accepted


def survival(confidence_logits: Tensor) -> Tensor:
    """Probability that a slot and all before it are accepted (paper, section 3.3).

    Args:
        confidence_logits (`torch.Tensor` of shape `(batch, slots)`): Logits of P(slot accepted | all before accepted).

    Returns:
        `torch.FloatTensor` of shape `(batch, slots)`, falling from slot to slot.
    """
    return confidence_logits.float().sigmoid().cumprod(-1)


def _check_shapes(draft_ids: Tensor, target: Tensor) -> None:
    if draft_ids.ndim != 2 or target.shape[:2] != (draft_ids.shape[0], draft_ids.shape[1] + 1):
        raise ValueError(
            f"A block of n drafts is verified against n + 1 positions of the target, got drafts of shape "
            f"{tuple(draft_ids.shape)} and target positions of shape {tuple(target.shape[:2])}."
        )


__all__ = [
    "Verification",
    "accept_or_redraw",
    "block_chances",
    "draw",
    "residual",
    "survival",
    "verify_argmax",
    "verify_greedy",
    "verify_sampled",
]
