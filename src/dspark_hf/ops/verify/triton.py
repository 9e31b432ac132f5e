"""Verification on a GPU: two launches a round, and every logit that counts is read once.

The first sums up each position in pieces of `_PIECE` tokens: the largest logit m and sum(exp(x - m)), or the best
token. The second has one program a row. It puts the pieces together, reads the target's probability of the draft and
of the k candidates alone, judges slot after slot, and draws the token that follows by inverse CDF: first the piece,
which weighs budget * p(piece) - sum over its candidates of min(budget p, q), then the token inside, for which one
piece is read again. Probabilities are sums of float32 exponentials in float64, as are budgets and random numbers.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.counter_random.triton import draw_place, uniform
from dspark_hf.ops.spec import Configuration, is_aligned

# Tokens of a piece, and pieces of a program of the first launch.
_PIECE, _PIECES = 1024, 4
# Pieces of a position, and candidates of a slot, that the second launch holds at a time.
_MOST_PIECES = 512
_MOST_CANDIDATES = 512
# Candidates that are looked for among the pieces, or among a piece's tokens, at a time.
_GROUP = 8
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Of none of these value or alignment makes a form of a kernel of its own.
_NUMBERS = (
    "row_stride", "slot_stride", "draft_stride", "draft_slot_stride", "has_lengths", "num_positions", "num_slots",
    "num_candidates", "vocab", "num_pieces",
)  # fmt: skip
_POINTERS = {
    **dict.fromkeys(("lengths", "draft_ids", "q_ids", "keys", "accepted_len", "next_ids"), "*i64"),
    **dict.fromkeys(("q_probs", "tops", "maxima", "sums", "best"), "*fp32"), "places": "*i32",
}  # fmt: skip
_ANYWHERE = (*_POINTERS, "scores", "others")


def covers(target_scores: Tensor, candidates: Candidates | None = None) -> bool:
    """Whether the kernels take `target_scores` `(batch, slots + 1, vocab)` and `candidates` `(batch, slots, k)`."""
    return (
        target_scores.dtype in _DTYPES.values()
        and target_scores.numel() > 0
        and target_scores.stride(-1) == 1
        and target_scores.shape[-1] <= _PIECE * _MOST_PIECES
        and (candidates is None or candidates.ids.shape[-1] <= _MOST_CANDIDATES)
    )


def verify_argmax(draft_ids: Tensor, target_scores: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """As of [`dspark_hf.ops.verify.verify_argmax`]."""
    best, places = _sum_up(draft_ids, target_scores, lengths, is_greedy=True)
    accepted_len, next_ids = _verdicts(draft_ids)
    _judge_greedy[(draft_ids.shape[0],)](
        draft_ids, draft_ids.stride(0), draft_ids.stride(1), *_offers(lengths, draft_ids), best, places,
        accepted_len, next_ids, draft_ids.shape[1], target_scores.shape[2], best.shape[2],
        PIECES=_MOST_PIECES, num_warps=4,
    )  # fmt: skip
    return accepted_len, next_ids


def verify_sampled(
    draft_ids: Tensor,
    candidates: Candidates | None,
    target_scores: Tensor,
    lengths: Tensor | None,
    key: Tensor,
    verification: str,
) -> tuple[Tensor, Tensor]:
    """As of [`dspark_hf.ops.verify.verify_sampled`], with a key of [`draw_key`] in place of a generator."""
    if candidates is None:
        candidates = Candidates(draft_ids.unsqueeze(-1), target_scores.new_empty(*draft_ids.shape, 1).float())
    ids, probs = candidates.ids.contiguous(), candidates.probs.contiguous()
    maxima, sums = _sum_up(draft_ids, target_scores, lengths, is_greedy=False)
    accepted_len, next_ids = _verdicts(draft_ids)
    num_slots, num_candidates = draft_ids.shape[1], ids.shape[2]
    _judge_sampled[(draft_ids.shape[0],)](
        target_scores, target_scores.stride(0), target_scores.stride(1), draft_ids, draft_ids.stride(0),
        draft_ids.stride(1), ids, probs, *_offers(lengths, draft_ids), maxima, sums, key, accepted_len, next_ids,
        num_slots, num_candidates, target_scores.shape[2], maxima.shape[2], IS_BLOCK=verification == "block",
        CANDIDATES=_MOST_CANDIDATES, PIECE=_PIECE,
        PIECES=_MOST_PIECES, GROUP=_GROUP, num_warps=8,
    )  # fmt: skip
    return accepted_len, next_ids


def _sum_up(draft_ids: Tensor, scores: Tensor, lengths: Tensor | None, is_greedy: bool) -> tuple[Tensor, Tensor]:
    batch_size, num_positions, vocab = scores.shape
    num_pieces = triton.cdiv(vocab, _PIECE)
    tops = torch.empty(batch_size, num_positions, num_pieces, device=scores.device)
    others = torch.empty_like(tops, dtype=torch.int32 if is_greedy else torch.float32)
    _summarize[(triton.cdiv(num_pieces, _PIECES), batch_size * num_positions)](
        scores, scores.stride(0), scores.stride(1), *_offers(lengths, draft_ids), tops, others, num_positions, vocab,
        num_pieces, IS_ALIGNED=is_aligned(scores), IS_GREEDY=is_greedy, PIECE=_PIECE, PIECES=_PIECES, num_warps=4,
    )  # fmt: skip
    return tops, others


def _offers(lengths: Tensor | None, draft_ids: Tensor) -> tuple[Tensor, int]:
    """Lengths, and whether there are any; a pointer is needed in any case."""
    return (draft_ids, 0) if lengths is None else (lengths.contiguous(), 1)


def _verdicts(draft_ids: Tensor) -> tuple[Tensor, Tensor]:
    return draft_ids.new_empty(draft_ids.shape[0]), draft_ids.new_empty(draft_ids.shape[0])


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ANYWHERE)
def _summarize(
    scores, row_stride, slot_stride, lengths, has_lengths, tops, others, num_positions, vocab, num_pieces,
    IS_ALIGNED: tl.constexpr, IS_GREEDY: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(1)
    row, slot = position // num_positions, position % num_positions
    length = tl.load(lengths + row, mask=has_lengths != 0, other=num_positions).to(tl.int32)
    # A row's positions behind its offer are left out, but for the first: rows that have ended are offered -1.
    is_used = slot <= tl.maximum(length, 0)
    num_ids, num_used = tl.where(is_used, vocab, 0), tl.where(is_used, num_pieces, 0)
    pieces = tl.program_id(0) * PIECES + tl.arange(0, PIECES)
    ids = pieces[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    start = scores + row.to(tl.int64) * row_stride + slot.to(tl.int64) * slot_stride
    if IS_ALIGNED:
        # Then loads are wide.
        start, num_ids = tl.multiple_of(start, 16), num_ids // 16 * 16
    inside = ids < num_ids
    x = tl.load(start + ids, mask=inside, other=-float("inf")).to(tl.float32)
    if IS_GREEDY:
        is_nan = x != x
        top = tl.max(tl.where(is_nan, -float("inf"), x), 1)
        first = tl.min(tl.where((x == top[:, None]) & inside, ids, vocab), 1)
        first_nan = tl.min(tl.where(is_nan, ids, vocab), 1)
        other = tl.where(first_nan < vocab, first_nan, first)
        top = tl.where(first_nan < vocab, float("nan"), top)
    else:
        top = tl.max(x, 1)
        other = tl.sum(tl.exp(x - _finite(top)[:, None]), 1)
    places = position.to(tl.int64) * num_pieces + pieces
    tl.store(tops + places, top, mask=pieces < num_used)
    tl.store(others + places, other, mask=pieces < num_used)


@triton.jit
def _finite(top):
    # Where all is banned there is nothing to subtract.
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ANYWHERE)
def _judge_greedy(
    draft_ids, draft_stride, slot_stride, lengths, has_lengths, best, places, accepted_len, next_ids,
    num_slots, vocab, num_pieces, PIECES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row, mask=has_lengths != 0, other=num_slots).to(tl.int32)
    pieces = tl.arange(0, PIECES)
    slot = tl.full((), 0, tl.int64)
    token = vocab
    goes_on = tl.full((), 1, tl.int1)
    while goes_on:
        at = (row * (num_slots + 1) + slot) * num_pieces + pieces
        top = tl.load(best + at, mask=pieces < num_pieces, other=-float("inf"))
        place = tl.load(places + at, mask=pieces < num_pieces, other=vocab)
        is_nan = top != top
        first_nan = tl.min(tl.where(is_nan, place, vocab), 0)
        top = tl.where(is_nan, -float("inf"), top)
        first = tl.min(tl.where(top == tl.max(top, 0), place, vocab), 0)
        token = tl.where(first_nan < vocab, first_nan, first)
        draft = tl.load(draft_ids + row * draft_stride + slot * slot_stride, mask=slot < length, other=-1)
        goes_on = (slot < length) & (draft == token)
        slot += goes_on.to(tl.int64)
    tl.store(accepted_len + row, slot)
    tl.store(next_ids + row, token.to(tl.int64))


@triton.jit
def _norm(maxima, sums, at, is_inside):
    """Largest logit of a position, and what each piece adds to the sum of exponentials behind it."""
    tops = tl.load(maxima + at, mask=is_inside, other=-float("inf"))
    parts = tl.load(sums + at, mask=is_inside, other=0.0)
    top = _finite(tl.max(tops, 0))
    return top, tl.where(parts == 0.0, 0.0, tl.exp(tops - top)).to(tl.float64) * parts.to(tl.float64)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ANYWHERE)
def _judge_sampled(
    scores, row_stride, slot_stride, draft_ids, draft_stride, draft_slot_stride, q_ids, q_probs, lengths, has_lengths,
    maxima, sums, keys, accepted_len, next_ids, num_slots, num_candidates, vocab, num_pieces,
    IS_BLOCK: tl.constexpr, CANDIDATES: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    key = tl.load(keys)
    length = tl.load(lengths + row, mask=has_lengths != 0, other=num_slots).to(tl.int32)
    pieces, places = tl.arange(0, PIECES), tl.arange(0, CANDIDATES)
    of_row = scores + row * row_stride
    slot = tl.full((), 0, tl.int64)
    accepted = tl.full((), 0, tl.int64)
    budget = tl.full((), 1.0, tl.float64)
    accepted_budget = tl.full((), 1.0, tl.float64)
    goes_on = tl.full((), 1, tl.int1)
    is_rejected = tl.full((), 0, tl.int1)
    while goes_on:
        at = (row * (num_slots + 1) + slot) * num_pieces + pieces
        top, parts = _norm(maxima, sums, at, pieces < num_pieces)
        total = tl.sum(parts, 0)
        is_offered = slot < length
        here = of_row + slot * slot_stride
        draft = tl.load(draft_ids + row * draft_stride + slot * draft_slot_stride, mask=is_offered, other=0)
        p = tl.exp(tl.load(here + draft, mask=is_offered, other=0.0).to(tl.float32) - top).to(tl.float64) / total
        is_there = places < tl.where(is_offered, num_candidates, 0)
        entry = (row * num_slots + slot) * num_candidates + places
        ids = tl.load(q_ids + entry, mask=is_there, other=0)
        q = tl.load(q_probs + entry, mask=is_there, other=0.0)
        mass = tl.sum(q, 0)
        draft_q = tl.sum(tl.where(ids == draft, q, 0.0), 0).to(tl.float64)
        # A number that is not finite compares as False.
        is_offered = is_offered & (mass > 0) & (mass < float("inf")) & (p < float("inf"))
        if IS_BLOCK:
            candidate_p = tl.exp(tl.load(here + ids, mask=is_there, other=-float("inf")).to(tl.float32) - top)
            overlap = tl.sum(tl.minimum(budget * (candidate_p.to(tl.float64) / total), q.to(tl.float64)), 0)
            inner = tl.maximum(budget - overlap, 0.0) / tl.maximum(1 - overlap, 2.2250738585072014e-308)
            chance = tl.where(is_offered, inner, budget)
            passes = (slot > 0) & (uniform(key, row, slot - 1) < chance)
            accepted = tl.where(passes, slot, accepted)
            accepted_budget = tl.where(passes, budget, accepted_budget)
            # A draft that could not have been drawn is never accepted.
            ratio = tl.where(draft_q > 0, p / draft_q, 0.0)
            budget = tl.minimum(budget * ratio, 1.0)
            is_rejected = is_offered | (accepted < slot)
            goes_on = is_offered
            slot += goes_on.to(tl.int64)
        else:
            goes_on = is_offered & (uniform(key, row, slot) * draft_q < p) & (draft_q > 0)
            is_rejected = is_offered
            slot += goes_on.to(tl.int64)
            accepted = slot
    tl.store(accepted_len + row, accepted)
    # The piece, then the token inside.
    here = of_row + accepted * slot_stride
    at = (row * (num_slots + 1) + accepted) * num_pieces + pieces
    top, parts = _norm(maxima, sums, at, pieces < num_pieces)
    total = tl.sum(parts, 0)
    mass = parts / total
    weights = mass
    entry = (row * num_slots + accepted) * num_candidates
    if is_rejected:
        covered = tl.zeros((PIECES,), tl.float64)
        for start in range(0, num_candidates, GROUP):
            some = start + tl.arange(0, GROUP)
            ids = tl.load(q_ids + entry + some, mask=some < num_candidates, other=0)
            q = tl.load(q_probs + entry + some, mask=some < num_candidates, other=0.0).to(tl.float64)
            p = tl.exp(tl.load(here + ids, mask=some < num_candidates, other=0.0).to(tl.float32) - top)
            taken = tl.minimum(accepted_budget * (p.to(tl.float64) / total), q)
            is_of = (ids // PIECE)[:, None] == pieces[None, :]
            covered += tl.sum(tl.where(is_of, taken[:, None], 0.0), 0)
        rest = accepted_budget * mass - covered
        # What rounding alone may have left is nothing.
        rest = tl.where(rest > accepted_budget * mass * 1e-6, rest, 0.0)
        is_rejected = tl.sum(rest, 0) > 1.1754943508222875e-38
        weights = tl.where(is_rejected, rest, mass)
    number = uniform(key, row, num_slots)
    piece, left = draw_place(weights, pieces, number)
    number = left / tl.sum(tl.where(pieces == piece, weights, 0.0), 0)
    ids = piece * PIECE + tl.arange(0, PIECE)
    p = tl.exp(tl.load(here + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32) - top)
    weights = p.to(tl.float64) / total
    if is_rejected:
        drafted = tl.zeros((PIECE,), tl.float32)
        for start in range(0, num_candidates, GROUP):
            some = start + tl.arange(0, GROUP)
            others = tl.load(q_ids + entry + some, mask=some < num_candidates, other=0)
            q = tl.load(q_probs + entry + some, mask=some < num_candidates, other=0.0)
            drafted += tl.sum(tl.where(others[:, None] == ids[None, :], q[:, None], 0.0), 0)
        rest = tl.maximum(accepted_budget * weights - drafted.to(tl.float64), 0.0)
        weights = tl.where(tl.sum(rest, 0) > 0, rest, weights)
    place, _ = draw_place(weights, tl.arange(0, PIECE), number)
    has_distribution = (total > 0) & (total < float("inf"))
    tl.store(next_ids + row, tl.where(has_distribution, piece * PIECE + place, vocab).to(tl.int64))


def configurations() -> list[Configuration]:
    """Every form of the kernels that the functions above choose among."""
    known, found = {**dict.fromkeys(_NUMBERS, "i32"), **_POINTERS}, []
    for name in _DTYPES:
        types = {**known, "scores": f"*{name}"}
        for is_greedy, aligned in itertools.product((True, False), (True, False)):
            types["others"] = "*i32" if is_greedy else "*fp32"
            constants = {"IS_ALIGNED": aligned, "IS_GREEDY": is_greedy, "PIECE": _PIECE, "PIECES": _PIECES}
            title = f"{'best' if is_greedy else 'sums'} of pieces, {name}, {'aligned' if aligned else 'not aligned'}"
            found.append(Configuration.of(title, _summarize, types, constants, 4))
        for mode in ("block", "token"):
            constants = {"IS_BLOCK": mode == "block", "CANDIDATES": _MOST_CANDIDATES, "PIECE": _PIECE}
            constants |= {"PIECES": _MOST_PIECES, "GROUP": _GROUP}
            found.append(Configuration.of(f"{mode}, {name}", _judge_sampled, types, constants, 8))
    return [*found, Configuration.of("greedy", _judge_greedy, known, {"PIECES": _MOST_PIECES}, 4)]
