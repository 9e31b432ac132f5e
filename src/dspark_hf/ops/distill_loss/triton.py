"""The loss and its gradient on the logits of some rows, without any other tensor of the vocabulary's size.

With p = softmax(z) the draft's distribution, t the target's and y the token, the loss of a row is
    w * (a CE + b sum|p - t| - c sum t' log p),     t' = t / sum t over the vocabulary's entries,
and its gradient on z
    w * (a (p - 1[y]) + b p (s - sum(p s)) + c (p - t')),    s = sign(p - t).
A program owns a row and reads its logits three times: for both norms, for the sums over p and t, and for the gradient,
which takes the place of the draft's logits. Products with the head stay those of cuBLAS: logits made anew in each pass
would cost three products instead of one.
"""

from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from dspark_hf.ops.spec import Configuration, is_aligned

# Entries of the vocabulary that are held at a time: with more warps, sm_80 runs out of registers.
_PIECE, _NUM_WARPS, _NUM_STAGES = 4096, 8, 1
# Of none of these value or alignment makes a form of the kernel of its own.
_NUMBERS = ("row_stride", "target_stride", "vocab", "has_log_norm")
_POINTERS = {
    **dict.fromkeys(("log_norms", "weights", "losses", "cross_entropies", "distances"), "*fp32"),
    "target_ids": "*i64", "agreements": "*u1",
}  # fmt: skip
_IN_DTYPE = ("logits", "target_logits")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@triton.jit
def _add_up(scores, top, total):
    """Maximum, and sum of exponentials below it, with more scores."""
    new_top = tl.maximum(top, tl.max(scores, 0))
    # Where nothing is finite yet, inf - inf would be none.
    finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    return new_top, total * tl.exp(top - finite_top) + tl.sum(tl.exp(scores - finite_top), 0)


@triton.jit
def _read(logits, target_logits, places, vocab):
    """Both models' scores of some entries, float32."""
    inside = places < vocab
    scores = tl.load(logits + places, mask=inside, other=float("-inf"))
    targets = tl.load(target_logits + places, mask=inside, other=float("-inf"))
    return scores.to(tl.float32), targets.to(tl.float32)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=(*_POINTERS, *_IN_DTYPE))
def logit_gradient_rows(
    logits, target_logits, target_ids, log_norms, weights, losses, cross_entropies, distances, agreements,
    row_stride, target_stride, vocab, has_log_norm, ce_weight, tv_weight, soft_ce_weight, PIECE: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    """A row's figures, and its gradient in place of its logits."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * row_stride
    target_logits += row.to(tl.int64) * target_stride
    if IS_ALIGNED:
        # Then loads and stores are wide.
        logits, target_logits = tl.multiple_of(logits, 16), tl.multiple_of(target_logits, 16)
        vocab = vocab // 16 * 16
    token = tl.load(target_ids + row)
    known = token >= 0
    score = tl.load(logits + tl.maximum(token, 0)).to(tl.float32)
    steps = tl.arange(0, PIECE)

    top, target_top, total, target_total = float("-inf"), float("-inf"), 0.0, 0.0
    for start in range(0, vocab, PIECE):
        scores, targets = _read(logits, target_logits, start + steps, vocab)
        top, total = _add_up(scores, top, total)
        target_top, target_total = _add_up(targets, target_top, target_total)
    log_norm, own_norm = top + tl.log(total), target_top + tl.log(target_total)
    target_norm = own_norm
    if has_log_norm != 0:
        target_norm = tl.load(log_norms + row)
    # What t has of t', at most all.
    share = tl.exp(own_norm - target_norm)

    distance, tilt, held, expected, agree = 0.0, 0.0, 0.0, 0.0, 0
    for start in range(0, vocab, PIECE):
        places = start + steps
        scores, targets = _read(logits, target_logits, places, vocab)
        probs, own_probs = tl.exp(scores - log_norm), tl.exp(targets - own_norm)
        difference = probs - share * own_probs
        distance += tl.sum(tl.abs(difference), 0)
        tilt += tl.sum(tl.where(difference > 0, probs, tl.where(difference < 0, -probs, 0.0)), 0)
        held += share * tl.sum(own_probs, 0)
        # 0 * -inf is 0 here.
        expected += tl.sum(own_probs * tl.where(own_probs > 0, scores, 0.0), 0)
        both = (scores == top) & (targets == target_top) & (places < vocab)
        agree = tl.maximum(agree, tl.max(both.to(tl.int32), 0))
    if has_log_norm != 0:
        distance += 1 - held
        agree = tl.where(tl.exp(target_top - target_norm) >= 1 - held, agree, 0)
    cross_entropy = tl.where(known, log_norm - score, 0.0)
    soft = tl.where(known & (soft_ce_weight != 0), log_norm - expected, 0.0)
    tl.store(losses + row, ce_weight * cross_entropy + tv_weight * distance + soft_ce_weight * soft)
    tl.store(cross_entropies + row, cross_entropy)
    tl.store(distances + row, distance)
    tl.store(agreements + row, agree != 0)

    weight = tl.load(weights + row).to(tl.float32)
    hard = tl.where(known, ce_weight, 0.0)
    soft_weight = tl.where(known, soft_ce_weight, 0.0)
    for start in range(0, vocab, PIECE):
        places = start + steps
        scores, targets = _read(logits, target_logits, places, vocab)
        probs, own_probs = tl.exp(scores - log_norm), tl.exp(targets - own_norm)
        difference = probs - share * own_probs
        sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
        gradient = hard * (probs - tl.where(places == token, 1.0, 0.0)) + tv_weight * probs * (sign - tilt)
        gradient += soft_weight * (probs - own_probs)
        tl.store(logits + places, (weight * gradient).to(logits.dtype.element_ty), mask=places < vocab)


def covers(dtype: torch.dtype) -> bool:
    """Whether logits of a `dtype` have a form of the kernel."""
    return dtype in _DTYPES.values()


def logit_gradient_kernel(
    logits: Tensor,
    target_logits: Tensor,
    target_ids: Tensor,
    target_log_norm: Tensor | None,
    weights: Tensor,
    term_weights: tuple[float, float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As of [`dspark_hf.ops.distill_loss.streamed.logit_gradient`]; the gradient takes the place of the logits."""
    num_rows, vocab_size = logits.shape
    losses, cross_entropy, l1 = torch.empty(3, num_rows, dtype=torch.float32, device=logits.device)
    agrees = torch.empty(num_rows, dtype=torch.bool, device=logits.device)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    target_logits = target_logits if target_logits.stride(-1) == 1 else target_logits.contiguous()
    if num_rows:
        logit_gradient_rows[(num_rows,)](
            logits, target_logits, target_ids.contiguous(),
            losses if target_log_norm is None else target_log_norm.float().contiguous(),
            weights.float().contiguous(), losses, cross_entropy, l1, agrees, logits.stride(0), target_logits.stride(0),
            vocab_size, int(target_log_norm is not None), *map(float, term_weights),
            PIECE=_PIECE, IS_ALIGNED=is_aligned(logits) and is_aligned(target_logits),
            num_warps=_NUM_WARPS, num_stages=_NUM_STAGES,
        )  # fmt: skip
    return logits, losses, cross_entropy, l1, agrees


def configurations() -> list[Configuration]:
    """Every form of the kernel that [`logit_gradient_kernel`] chooses among."""
    found = []
    weights = dict.fromkeys(("ce_weight", "tv_weight", "soft_ce_weight"), "fp32")
    for name, aligned in product(_DTYPES, (True, False)):
        types = {**dict.fromkeys(_NUMBERS, "i32"), **weights, **_POINTERS}
        types |= dict.fromkeys(_IN_DTYPE, f"*{name}")
        title = f"gradient, {name}, {'aligned' if aligned else 'not aligned'}"
        constants = {"PIECE": _PIECE, "IS_ALIGNED": aligned}
        found.append(
            Configuration.of(title, logit_gradient_rows, types, constants, _NUM_WARPS, num_stages=_NUM_STAGES)
        )
    return found
