"""Cases of the loss's kernel: logits of both models, tails of the vocabulary, entries that it lacks, and equal rows.

Shapes: N rows, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dspark_hf.ops.spec import KernelSpec, Least

from .streamed import logit_gradient

# Of gradients, which are as round as logits are; the interpreter rounds to bfloat16 towards zero.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 5e-4}


@dataclass(frozen=True)
class Case:
    """Some rows.

    Attributes:
        rows, vocab (`int`): N and V.
        dtype (`torch.dtype`): Of the logits.
        term_weights (`tuple[float, float, float]`): Of cross-entropy, L1 distance and soft cross-entropy.
        is_reduced (`bool`): Whether the target gives something to tokens outside of the vocabulary, and some rows'
            token is one of these.
        is_strided (`bool`): Whether rows are parts of longer ones, with NaN behind them.
    """

    rows: int
    vocab: int
    dtype: torch.dtype = torch.bfloat16
    term_weights: tuple[float, float, float] = (0.1, 0.9, 0.0)
    is_reduced: bool = False
    is_strided: bool = False


_SMALL = Case(5, 1000, torch.float32)
_SHORT = {
    "small": _SMALL,
    "reduced": Case(5, 4097, torch.bfloat16, (0.1, 0.9, 0.3), is_reduced=True, is_strided=True),
    "soft": Case(4, 1000, torch.float16, (0.0, 0.0, 1.0)),
    "49152": Case(3, 49_152, torch.bfloat16),
}
_LONG = {
    f"{vocab} {dtype} {weights}{' reduced' if is_reduced else ''}".replace("torch.", ""): Case(
        6, vocab, dtype, weights, is_reduced, is_strided=is_reduced
    )
    for vocab in (1, 1000, 49_152, 151_936)
    for dtype in _TOLERANCES
    for weights in ((0.1, 0.9, 0.0), (1.0, 0.5, 0.3))
    for is_reduced in (False, True)
} | {"no rows": replace(_SMALL, rows=0)}
# A chunk of the default size in training for Qwen3, and some of its rows, which share nothing.
_SERVED, _COUNTED = {"256 rows of 151936": Case(256, 151_936)}, {"4 rows of 151936": Case(4, 151_936)}
CASES = _SHORT | _LONG | _SERVED | _COUNTED


def make(case: Case, device: torch.device) -> dict[str, Any]:
    """What [`~dspark_hf.ops.distill_loss.streamed.logit_gradient`] is given in a `case` on a `device`."""
    generator = torch.Generator().manual_seed(case.vocab + case.rows)
    width = case.vocab + 3 * case.is_strided

    def normal(scale: float) -> Tensor:
        return (scale * torch.randn(case.rows, width, generator=generator)).to(case.dtype)

    logits, target_logits = normal(3.0), normal(3.0)
    # In every other row both are close; in one they are equal.
    target_logits[::2] = (logits[::2] + 0.1 * target_logits[::2]).to(case.dtype)
    target_logits[3:4] = logits[3:4]
    for part in (logits, target_logits):
        part[:, case.vocab :] = float("nan")
    logits, target_logits = logits[:, : case.vocab], target_logits[:, : case.vocab]
    ids = torch.randint(case.vocab, (case.rows,), generator=generator)
    log_norm = None
    if case.is_reduced:
        ids[1::3] = -1
        outside = torch.rand(case.rows, generator=generator) * 2
        log_norm = (torch.logsumexp(target_logits.float(), -1) + outside).to(device)
    weights = torch.rand(case.rows, generator=generator)
    # A row that does not count.
    weights[-1:] = 0
    return {
        "logits": logits.to(device), "target_logits": target_logits.to(device), "target_ids": ids.to(device),
        "target_log_norm": log_norm, "weights": weights.to(device), "term_weights": case.term_weights,
    }  # fmt: skip


def compare(case: Case, device: torch.device) -> str | None:
    """How the kernel differs from the streamed form in float64 in a `case` on a `device`; None where it does not."""
    from .triton import logit_gradient_kernel

    given = make(case, device)
    exact = {name: part.double() if isinstance(part, Tensor) else part for name, part in given.items()}
    expected = logit_gradient(**exact | {"target_ids": given["target_ids"]})
    found = logit_gradient_kernel(**given)
    names = ("gradient", "loss", "cross-entropy", "L1 distance", "agreement")
    for name, ours, theirs in zip(names, found, expected, strict=True):
        limit = _TOLERANCES[case.dtype] if name == "gradient" else 1e-5
        difference = (ours.double() - theirs.double()).abs()
        # Tiny entries of a gradient in half precision are multiples of the least number that there is.
        allowed = limit * theirs.double().abs() + (1e-7 + _rounding(exact) if name == "gradient" else 1e-5)
        if not (difference <= allowed).all():
            return f"{name} differs by up to {difference.nan_to_num(float('inf')).max().item():.1e}"
    return None


def _rounding(given: dict[str, Any]) -> Tensor:
    """What float32 leaves open in a gradient: the sign where p and t are equal, and the rest that sums cancel to."""
    log_norm = given["target_log_norm"]
    log_norm = given["target_logits"].logsumexp(-1) if log_norm is None else log_norm
    probs, target_probs = given["logits"].softmax(-1), (given["target_logits"] - log_norm.unsqueeze(-1)).exp()
    is_tie = (probs - target_probs).abs() <= 1e-5 * probs
    return given["term_weights"][1] * given["weights"].unsqueeze(-1) * probs * (1e-6 + 2 * is_tie)


def ways(case: Case, device: torch.device) -> dict[str, Callable[[], Any]]:
    """A `case` on a `device` by the kernel and by torch's operations."""
    from .triton import logit_gradient_kernel

    given = make(case, device)
    return {"torch": lambda: logit_gradient(**given), "triton": lambda: logit_gradient_kernel(**given)}


def least(case: Case) -> Least:
    """What a `case` takes at least: both models' logits read and the gradient written once."""
    of_row = 8 + 4 + 4 * case.is_reduced + 3 * 4 + 1
    return Least(3 * case.rows * case.vocab * case.dtype.itemsize + case.rows * of_row)


SPEC = KernelSpec("distill_loss", CASES, tuple(_SHORT), "small", tuple(_SERVED), compare, ways, least, tuple(_COUNTED))
