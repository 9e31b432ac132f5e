"""The sequential stage of a whole block in one launch: a program for each row walks through its slots.

A slot takes k rows of W2 and one of W1, both read once, and gives k scores; bias, softmax and confidence are float32.
A token is drawn by inverse CDF over the very probabilities that are stored, in float64, with numbers of a stream that
verification does not use, under a key that torch's generator draws for each call.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from dspark_hf.ops.counter_random.triton import draw_place, uniform
from dspark_hf.ops.spec import Configuration

from .weights import BlockHeads, DraftedBlock

# Candidates of a slot that a program holds; twice as many would not fit into its registers.
_MOST_CANDIDATES = 512
# Columns of W2, and of states, at a time.
_RANKS, _STATES = 32, 1024
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Of none of these value or alignment makes a form of the kernel of its own. Rows of W1 and W2 are aligned always.
_NUMBERS = (
    "anchor_stride", "has_tokens", "row_stride", "slot_stride", "has_bias", "num_slots", "num_candidates", "num_known",
    "hidden_size", "reads_embedding",
)  # fmt: skip
_POINTERS = {
    **dict.fromkeys(("entries", "anchor_ids", "draft_tokens", "keys", "token_ids"), "*i64"),
    **dict.fromkeys(("probs", "max_probs"), "*fp32"),
}  # fmt: skip
_IN_DTYPE = ("logits", "hidden", "confidence_weight", "confidence_bias", "confidence")


def covers(logits: Tensor, hidden: Tensor, heads: BlockHeads) -> bool:
    """Whether the kernel takes such tensors.

    Args:
        logits (`torch.Tensor` of shape `(batch, slots, k)`): As of [`markov_block`].
        hidden (`torch.Tensor` of shape `(batch, slots, hidden)`): As of [`markov_block`].
        heads ([`BlockHeads`]): As of [`markov_block`].
    """
    tensors = [hidden, *(part for part in heads if part is not None and part.is_floating_point())]
    return (
        logits.dtype in _DTYPES.values()
        and logits.numel() > 0
        and logits.shape[-1] <= _MOST_CANDIDATES
        and all(part.dtype == logits.dtype and part.stride(-1) == 1 for part in tensors)
        and all(part.is_contiguous() and part.data_ptr() % 16 == 0 for part in (heads.embedding, heads.weight))
        # Rows of W2 that are not aligned take more registers than there are.
        and heads.weight.shape[1] % 16 == 0
    )


def markov_block(
    logits: Tensor,
    entries: Tensor,
    anchor_ids: Tensor,
    hidden: Tensor,
    heads: BlockHeads,
    temperature: float | None,
    key: Tensor | None,
) -> DraftedBlock:
    """As of [`dspark_hf.ops.markov_block.markov_block`], with a key of [`draw_key`] where tokens are drawn."""
    batch_size, num_slots, num_candidates = logits.shape
    logits, entries, draws = logits.contiguous(), entries.contiguous(), temperature is not None
    ids = anchor_ids.new_empty(batch_size, num_slots)
    max_probs = torch.empty(batch_size, num_slots, device=logits.device)
    probs = torch.empty(logits.shape, device=logits.device) if draws else None
    has_confidence = heads.confidence_weight is not None
    confidence = torch.empty_like(max_probs, dtype=logits.dtype) if has_confidence else None
    hidden_size = hidden.shape[-1]
    _walk[(batch_size,)](
        logits, entries, anchor_ids, anchor_ids.stride(0), heads.embedding, heads.weight,
        _given(heads.draft_tokens, ids), int(heads.draft_tokens is not None), hidden, hidden.stride(0),
        hidden.stride(1), _given(heads.confidence_weight, logits), _given(heads.confidence_bias, logits),
        int(heads.confidence_bias is not None), _given(key, ids), ids, _given(probs, max_probs), max_probs,
        _given(confidence, logits), num_slots, num_candidates, heads.weight.shape[1], heads.embedding.shape[0],
        hidden_size if has_confidence else 0, int(heads.reads_embedding(hidden_size)), 1 / (temperature or 1.0),
        DRAWS=draws, CANDIDATES=_MOST_CANDIDATES, RANKS=_RANKS, STATES=_STATES, num_warps=8,
    )  # fmt: skip
    return DraftedBlock(ids, probs, max_probs, confidence)


def _given(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer is needed in any case, to entries side by side."""
    return other if tensor is None else tensor.contiguous()


@triton.jit(do_not_specialize=(*_NUMBERS, "coolness"), do_not_specialize_on_alignment=(*_POINTERS, *_IN_DTYPE))
def _walk(
    logits, entries, anchor_ids, anchor_stride, embedding, weight, draft_tokens, has_tokens, hidden, row_stride,
    slot_stride, confidence_weight, confidence_bias, has_bias, keys, token_ids, probs, max_probs, confidence,
    num_slots, num_candidates, rank, num_known, hidden_size, reads_embedding, coolness,
    DRAWS: tl.constexpr, CANDIDATES: tl.constexpr, RANKS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, CANDIDATES)
    is_there = places < num_candidates
    columns = tl.arange(0, RANKS)
    previous = tl.load(anchor_ids + row * anchor_stride)
    if DRAWS:
        key = tl.load(keys)
    for slot in range(0, num_slots):
        at = row * num_slots + slot
        entry = tl.load(entries + at * num_candidates + places, mask=is_there, other=0)
        scores = tl.load(logits + at * num_candidates + places, mask=is_there, other=-float("inf")).to(tl.float32)
        vector = embedding + tl.minimum(previous, num_known - 1) * rank
        bias = tl.zeros((CANDIDATES,), tl.float32)
        # The confidence head reads the same row of W1.
        trust = tl.zeros((RANKS,), tl.float32)
        for start in range(0, rank, RANKS):
            at_rank = start + columns
            m = tl.load(vector + at_rank, mask=at_rank < rank, other=0.0).to(tl.float32)
            inside = is_there[:, None] & (at_rank < rank)[None, :]
            w = tl.load(weight + entry[:, None] * rank + at_rank[None, :], mask=inside, other=0.0)
            bias += tl.sum(w.to(tl.float32) * m[None, :], 1)
            num_read = tl.where(reads_embedding != 0, rank, 0)
            read = tl.load(confidence_weight + hidden_size + at_rank, mask=at_rank < num_read, other=0.0)
            trust += m * read.to(tl.float32)
        scores += bias
        if hidden_size > 0:
            states = tl.zeros((STATES,), tl.float32)
            for start in range(0, hidden_size, STATES):
                at_state = start + tl.arange(0, STATES)
                inside = at_state < hidden_size
                h = tl.load(hidden + row * row_stride + slot * slot_stride + at_state, mask=inside, other=0.0)
                w = tl.load(confidence_weight + at_state, mask=inside, other=0.0)
                states += h.to(tl.float32) * w.to(tl.float32)
            offset = tl.load(confidence_bias, mask=has_bias != 0, other=0.0).to(tl.float32)
            total = tl.sum(states, 0) + tl.sum(trust, 0) + offset
            tl.store(confidence + at, total.to(confidence.dtype.element_ty))
        top = tl.max(scores, 0)
        if DRAWS:
            exponentials = tl.exp((scores - top) * coolness)
            q = exponentials / tl.sum(exponentials, 0)
            tl.store(probs + at * num_candidates + places, q, mask=is_there)
            tl.store(max_probs + at, tl.max(q, 0))
            # The other half of a row's counters is verification's.
            place, _ = draw_place(q.to(tl.float64), places, uniform(key, row, slot + 32768))
        else:
            tl.store(max_probs + at, 1 / tl.sum(tl.exp(scores - top), 0))
            place = tl.min(tl.where(scores == top, places, num_candidates - 1), 0)
        chosen = tl.sum(tl.where(places == place, entry, 0), 0)
        previous = tl.load(draft_tokens + chosen, mask=has_tokens != 0, other=chosen)
        tl.store(token_ids + at, previous)


def configurations() -> list[Configuration]:
    """Every form of the kernel that the function above chooses among."""
    found, known = [], {**dict.fromkeys((*_NUMBERS, "rank"), "i32"), **_POINTERS, "coolness": "fp32"}
    for name, draws in itertools.product(_DTYPES, (True, False)):
        constants = {"DRAWS": draws, "CANDIDATES": _MOST_CANDIDATES, "RANKS": _RANKS, "STATES": _STATES}
        types = known | dict.fromkeys((*_IN_DTYPE, "embedding", "weight"), f"*{name}")
        title = f"{'draws' if draws else 'greedy'}, {name}"
        found.append(Configuration.of(title, _walk, types, constants, 8, ("embedding", "weight", "rank")))
    return found
