"""Verification in torch: what the kernel is held to, and what runs elsewhere.

Shapes: B batch, n offered slots, k candidates of a slot, V vocabulary. Row b is offered `lengths[b] <= n` slots; what
lies beyond is padding. Nothing here waits for the device, and no tensor of probabilities `(B, n, V)` is made.
"""

from typing import Literal

import torch
from torch import Tensor

from dspark_hf.ops.candidates import Candidates

Verification = Literal["block", "token"]

# Tokens that are summed first, where the vocabulary is at least so large.
_CHUNK, _MANY = 512, 65_536


def verify_greedy(draft_ids: Tensor, target_ids: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """As of [`dspark_hf.ops.verify.verify_greedy`]."""
    if draft_ids.shape[1] == 0:
        return draft_ids.new_zeros(draft_ids.shape[0]), target_ids[:, 0]
    passed = draft_ids == target_ids[:, :-1]
    if lengths is not None:
        passed = passed & _is_offered(passed.shape[1], lengths)
    accepted_len = _count_leading(passed)
    return accepted_len, target_ids.gather(1, accepted_len.unsqueeze(1)).squeeze(1)


def verify_sampled(
    draft_ids: Tensor,
    candidates: Candidates | None,
    target_scores: Tensor,
    lengths: Tensor | None,
    generator: torch.Generator | None,
    verification: Verification,
) -> tuple[Tensor, Tensor]:
    """As of [`dspark_hf.ops.verify.verify_sampled`]."""
    if draft_ids.shape[1] == 0:
        return draft_ids.new_zeros(draft_ids.shape[0]), draw(_softmax(target_scores[:, 0]), generator)
    uniform = torch.rand(draft_ids.shape, generator=generator, device=draft_ids.device)
    accepted_len, weights = judge(draft_ids, candidates, target_scores, lengths, uniform, verification)
    return accepted_len, draw(weights, generator)


def judge(
    draft_ids: Tensor,
    candidates: Candidates,
    target_scores: Tensor,
    lengths: Tensor | None,
    uniform: Tensor,
    verification: Verification,
) -> tuple[Tensor, Tensor]:
    """What stands, with random numbers that are given; in the precision of scores that are float64, else in float32.

    Args:
        draft_ids (`torch.LongTensor` of shape `(batch, slots)`): Drafted tokens, of one slot or more.
        candidates ([`Candidates`] of shape `(batch, slots, k)`): What they were drawn from.
        target_scores (`torch.Tensor` of shape `(batch, slots + 1, vocab)`): The target's processed scores.
        lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Slots offered per row; all, if not given.
        uniform (`torch.Tensor` of shape `(batch, slots)`): Numbers in [0, 1), one for each slot.
        verification (`str`): `"token"` or `"block"`.

    Returns:
        `tuple(torch.LongTensor, torch.Tensor)`: `accepted_len` `(batch,)`, and weights `(batch, vocab)` of the token
        that follows.
    """
    batch_size, num_slots = draft_ids.shape
    p = _probs_at(target_scores, torch.cat([draft_ids.unsqueeze(-1), candidates.ids], -1))  # [B, n, 1 + k]
    drawn_p, candidate_p = p[..., 0], p[..., 1:]
    drawn_q = candidates.prob_of(draft_ids)
    # A mass that is not finite compares as False, too.
    is_offered = (candidates.probs.sum(-1) > 0) & drawn_p.isfinite()
    if lengths is not None:
        is_offered &= _is_offered(num_slots, lengths)
    lengths = _count_leading(is_offered)
    if verification == "token":
        # u < p / q, strictly and without the division: a token of probability zero never passes.
        passed = (uniform * drawn_q < drawn_p) & (drawn_q > 0)
        accepted_len = _count_leading(passed & _is_offered(num_slots, lengths))
        budget = 1.0
    else:
        chances, budgets = block_chances(drawn_p, drawn_q, candidate_p, candidates.probs, lengths)
        places = torch.arange(1, num_slots + 1, device=draft_ids.device)
        accepted_len = torch.where(uniform < chances, places, 0).amax(-1)
        budget = budgets.gather(1, accepted_len.unsqueeze(1)).to(drawn_p)
    rows = torch.arange(batch_size, device=draft_ids.device)
    q = candidates[rows, accepted_len.clamp_max(num_slots - 1)]
    # After the last offered slot nothing was rejected: the next token is the target's own.
    rejected = (accepted_len < lengths).unsqueeze(-1)
    # A row of probabilities `(batch, vocab)` is all that is ever made of the target's.
    target_probs = _softmax(target_scores[rows, accepted_len])
    q = Candidates(q.ids, torch.where(rejected, q.probs, 0.0).to(target_probs.dtype))
    return accepted_len, residual(target_probs, q, torch.where(rejected, budget, 1.0))


def block_chances(
    drawn_p: Tensor, drawn_q: Tensor, candidate_p: Tensor, candidate_q: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Chances of block verification: of the prefixes that pass, the longest stands.

    The budget b_i of a prefix is min(1, b_{i-1} p(x_i) / q(x_i)), b_0 = 1. Behind it the target asks for more than the
    drafter gives in the mass r_i = sum over x of max(b_i p(x) - q(x), 0) = b_i - sum over candidates of min(b_i p, q).
    Prefix i < L passes with probability r_i / (r_i + 1 - b_i), and that of all L drafts that are verified with b_L.
    A row's leaf is what was verified of it: a cut block that is judged as if it went on is not exact.

    Args:
        drawn_p (`torch.FloatTensor` of shape `(batch, slots)`): The target's probability of each draft.
        drawn_q (`torch.FloatTensor` of shape `(batch, slots)`): The drafter's.
        candidate_p (`torch.FloatTensor` of shape `(batch, slots, k)`): The target's probability of each candidate.
        candidate_q (`torch.FloatTensor` of shape `(batch, slots, k)`): The drafter's.
        lengths (`torch.LongTensor` of shape `(batch,)`): Slots verified, L.

    Returns:
        `tuple(torch.DoubleTensor, torch.DoubleTensor)`: chances `(batch, slots)`, 0 past a row's length, and budgets
        `(batch, slots + 1)`, of the empty prefix first.

    Source: Sun et al. 2024, algorithm 2 (https://arxiv.org/abs/2403.10444).
    """
    num_slots = drawn_p.shape[1]
    ratios = (drawn_p / drawn_q).double()
    budgets, chances = [torch.ones_like(ratios[:, 0])], []
    for slot in range(num_slots):
        budget = (budgets[-1] * ratios[:, slot]).clamp_max(1.0)
        chance, place = budget, slot + 1
        if place < num_slots:
            overlap = torch.minimum(budget.unsqueeze(-1) * candidate_p[:, place], candidate_q[:, place]).sum(-1)
            inner = (budget - overlap).clamp_min(0) / (1 - overlap).clamp_min(torch.finfo(torch.float64).tiny)
            chance = torch.where(lengths == place, budget, inner)
        budgets.append(budget)
        chances.append(torch.where(lengths >= place, chance, 0.0))
    return torch.stack(chances, 1), torch.stack(budgets, 1)


def residual(target_probs: Tensor, candidates: Candidates, budget: Tensor | float = 1.0) -> Tensor:
    """Weights `max(budget p - q, 0)` of the token that replaces a rejected draft; `p` where rounding left nothing.

    Args:
        target_probs (`torch.FloatTensor` of shape `(batch, vocab)`): p.
        candidates ([`Candidates`] of shape `(batch, k)`): q.
        budget (`torch.FloatTensor` of shape `(batch, 1)` or `float`, *optional*, defaults to 1.0):
            What the accepted prefix has left of its probability; 1 where drafts are judged one after the other.

    Returns:
        `torch.FloatTensor` of shape `(batch, vocab)`, not normalised.
    """
    weights = candidates.subtract_from_(target_probs * budget).clamp_min_(0)
    # False for a q that is not finite, too: no draft was accepted against it, so p is right.
    is_usable = weights.sum(-1, keepdim=True) > torch.finfo(weights.dtype).tiny
    return torch.where(is_usable, weights, target_probs, out=weights)


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
    # CPU.
    uniform = torch.rand((weights.shape[0], 1), generator=generator, device=weights.device, dtype=torch.float64)
    vocab, end = weights.shape[1], weights.shape[1] // _CHUNK * _CHUNK
    if vocab < _MANY:
        sums = weights.cumsum(-1, dtype=torch.float64)
        return torch.searchsorted(sums, _below(uniform * sums[:, -1:], sums), right=True).squeeze(1)
    # Sums of chunks, and a running sum inside one of them: no float64 numbers for the whole vocabulary.
    chunks = weights[:, :end].unflatten(1, (end // _CHUNK, _CHUNK)).sum(-1, dtype=torch.float64)
    sums = torch.cat([chunks, weights[:, end:].sum(-1, keepdim=True, dtype=torch.float64)], 1).cumsum(-1)
    threshold = _below(uniform * sums[:, -1:], sums)
    chunk = torch.searchsorted(sums, threshold, right=True)  # [B, 1], past the last where there is no distribution
    before = torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp_min(0)), 0.0)
    ids = chunk * _CHUNK + torch.arange(_CHUNK, device=weights.device)
    inner = weights.gather(1, ids.clamp_max(vocab - 1)).where(ids < vocab, 0.0).cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(inner, _below(threshold - before, inner), right=True)
    return (chunk * _CHUNK + place).clamp_max(vocab).squeeze(1)


def _below(threshold: Tensor, sums: Tensor) -> Tensor:
    # Rounding may lift it to the total, which no sum exceeds. The first sum above it belongs to a positive weight.
    return torch.minimum(threshold, sums[:, -1:].nextafter(torch.zeros_like(threshold)))


def _probs_at(scores: Tensor, ids: Tensor) -> Tensor:
    # One position at a time, since probabilities of all of them would be as large as the logits. A position without a
    # distribution has none that is finite.
    slots = [_softmax(scores[:, slot]).gather(1, ids[:, slot]) for slot in range(ids.shape[1])]
    return torch.stack(slots, 1)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _is_offered(num_slots: int, lengths: Tensor) -> Tensor:
    return torch.arange(num_slots, device=lengths.device) < lengths.unsqueeze(1)


def _count_leading(passed: Tensor) -> Tensor:
    return passed.long().cumprod(-1).sum(-1)
