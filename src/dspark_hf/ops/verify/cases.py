"""Cases of verification: what the kernel is held to, timed on, and tried with at its first use.

Shapes: B rows, n slots, k candidates, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.counter_random import draw_key, uniforms
from dspark_hf.ops.spec import KernelSpec, Least

from . import reference

# Of one token's cumulative probability: sums over a vocabulary are float32 in part.
_TOLERANCE = 1e-5
_KEY = 2**40 + 17


@dataclass(frozen=True)
class Case:
    """A call.

    Attributes:
        vocab (`int`): V.
        dtype (`torch.dtype`): Of the target's scores.
        mode (`str`): `"greedy"`, or how drafts are judged: `"block"`, `"token"`.
        rows (`int`): B.
        slots (`int`): n.
        candidates (`int`): k.
        is_ragged (`bool`): Whether rows are offered 0, 1, ... n slots; what lies behind is NaN.
        is_strided (`bool`): Whether scores are a part of something larger, which is NaN elsewhere.
        is_gappy (`bool`): Whether slots lack candidates or a distribution, and half of the tokens are banned.
    """

    vocab: int
    dtype: torch.dtype = torch.bfloat16
    mode: str = "block"
    rows: int = 4
    slots: int = 3
    candidates: int = 16
    is_ragged: bool = False
    is_strided: bool = False
    is_gappy: bool = False


class Inputs:
    """What a case is called with, made on the CPU from a seed of its own.

    Args:
        case ([`Case`]): Sizes and peculiarities.
        device (`torch.device`): Where tensors end up.
    """

    def __init__(self, case: Case, device: torch.device):
        generator = torch.Generator().manual_seed(case.vocab + case.slots)
        shape = (case.rows, case.slots, case.vocab)
        logits = 4 * torch.randn(case.rows, case.slots + 1, case.vocab, generator=generator)
        best = (logits[:, :-1] + torch.randn(shape, generator=generator)).topk(case.candidates, -1)
        probs = best.values.softmax(-1)
        if case.is_gappy:
            logits[:, :, 1::2] = -torch.inf
            logits[0, -1] = logits[-1, 1] = -torch.inf
            probs[1, 1:] = 0.0
            probs[:, :, -2:] = 0.0
        places = torch.multinomial(probs.flatten(0, 1) + 1e-30, 1, generator=generator).view(shape[:2])
        if case.mode == "greedy":
            places = torch.zeros_like(places)
            logits[::2, :, :2] = logits.amax(-1, keepdim=True)[::2]
            best.indices[::2] = 0
        self.draft_ids = best.indices.gather(-1, places.unsqueeze(-1)).squeeze(-1).to(device)
        self.candidates = Candidates(best.indices, probs).to(device)
        self.lengths = None
        if case.is_ragged:
            self.lengths = torch.arange(case.rows) % (case.slots + 1)
            logits = logits.masked_fill((torch.arange(case.slots + 1) > self.lengths[:, None])[..., None], torch.nan)
            self.lengths = self.lengths.to(device)
        self.scores = logits.to(device, case.dtype)
        if case.is_strided:
            larger = torch.full(
                (case.rows, case.slots + 3, case.vocab + 5), torch.nan, device=device, dtype=case.dtype
            )
            larger[:, 1:-1, 3:-2] = self.scores
            self.scores = larger[:, 1:-1, 3:-2]
            self.draft_ids = self.draft_ids.T.contiguous().T


def compare(case: Case, device: torch.device) -> str | None:
    """How the kernel on a `device` differs from the reference in float64 under the same random numbers in a `case`, in
    words; None if it does not.
    """
    from . import triton

    inputs = Inputs(case, device)
    if case.mode == "greedy":
        found = triton.verify_argmax(inputs.draft_ids, inputs.scores, inputs.lengths)
        expected = reference.verify_greedy(inputs.draft_ids, inputs.scores.max(-1).indices, inputs.lengths)
        names = ("accepted_len", "next_ids")
        return _first_difference(zip(names, found, expected, strict=True))
    key = torch.tensor([_KEY], device=device)
    accepted_len, next_ids = triton.verify_sampled(
        inputs.draft_ids, inputs.candidates, inputs.scores, inputs.lengths, key, case.mode
    )
    numbers = uniforms(_KEY, (row * 65536 + slot for row in range(case.rows) for slot in range(case.slots + 1)))
    numbers = numbers.view(case.rows, -1).to(device)
    scores, exact = inputs.scores.double(), Candidates(inputs.candidates.ids, inputs.candidates.probs.double())
    if case.slots == 0:
        expected_len, weights = torch.zeros_like(accepted_len), scores[:, 0].softmax(-1)
    else:
        given = (inputs.draft_ids, exact, scores, inputs.lengths, numbers[:, :-1], case.mode)
        expected_len, weights = reference.judge(*given)
    return _first_difference([("accepted_len", accepted_len, expected_len)]) or _misdrawn(
        next_ids, weights, numbers[:, -1]
    )


def _first_difference(results: Any) -> str | None:
    for name, found, expected in results:
        if not torch.equal(found, expected):
            return f"{name} is {found.tolist()}, the reference has {expected.tolist()}"
    return None


def _misdrawn(next_ids: Tensor, weights: Tensor, numbers: Tensor) -> str | None:
    """Tokens that the reference's cumulative probability does not lead to."""
    vocab = weights.shape[-1]
    for row, (token, number) in enumerate(zip(next_ids.tolist(), numbers.tolist(), strict=True)):
        sums = weights[row].cumsum(-1)
        if not (sums[-1] > 0 and sums[-1] < torch.inf):
            if token != vocab:
                return f"row {row} has no distribution, and got token {token}"
            continue
        if not 0 <= token < vocab or weights[row, token] <= 0:
            return f"row {row} got token {token}, which has no probability"
        sums = sums / sums[-1]
        low, high = (sums[token - 1] if token > 0 else 0.0), sums[token]
        if not low - _TOLERANCE <= number <= high + _TOLERANCE:
            return f"row {row} got token {token}, of {float(low):.7f} to {float(high):.7f}, for {number:.7f}"
    return None


def ways(case: Case, device: torch.device) -> dict[str, Callable[[], Any]]:
    """A `case` on a `device` as torch and as the kernel compute it."""
    from . import triton

    inputs, generator = Inputs(case, device), torch.Generator(device=device).manual_seed(0)
    given = (inputs.draft_ids, inputs.candidates, inputs.scores, inputs.lengths)
    if case.mode != "greedy":
        return {
            "torch": lambda: reference.verify_sampled(*given, generator, case.mode),
            "triton": lambda: triton.verify_sampled(*given, draw_key(generator, device), case.mode),
        }
    given = (inputs.draft_ids, inputs.scores, inputs.lengths)
    return {
        "torch": lambda: reference.verify_greedy(given[0], given[1].max(-1).indices, given[2]),
        "triton": lambda: triton.verify_argmax(*given),
    }


def least(case: Case) -> Least:
    """The least that a `case` moves: logits of the positions that are offered, what drafts were drawn from, and the
    verdict.
    """
    lengths = [row % (case.slots + 1) if case.is_ragged else case.slots for row in range(case.rows)]
    of_slot = 8 + (0 if case.mode == "greedy" else 12 * case.candidates)
    of_row = 16 + 8 * case.is_ragged
    logits = sum(length + 1 for length in lengths) * case.vocab * case.dtype.itemsize
    return Least(logits + sum(lengths) * of_slot + case.rows * of_row)


_HALF, _WHOLE = torch.float16, torch.float32
# A round as Qwen3-4B has it, with 0 to 7 drafts.
_SERVED = Case(151936, rows=8, slots=7, candidates=512, is_ragged=True)
CASES = {
    "small": Case(1000, rows=3, slots=2),
    "token": Case(1000, _WHOLE, "token", is_ragged=True, is_gappy=True),
    "block": Case(1000, _HALF, "block", is_ragged=True, is_strided=True, is_gappy=True),
    "greedy": Case(1000, torch.bfloat16, "greedy", is_ragged=True, is_strided=True),
    "tail": Case(4112, _WHOLE, "block", candidates=100),
    "no slots": Case(1500, _WHOLE, "block", rows=2, slots=0, candidates=1),
    "greedy, banned": Case(2049, _WHOLE, "greedy", is_gappy=True),
    "SmolLM2": Case(49152, rows=3, slots=4, candidates=512, is_ragged=True),
    "SmolLM2, token": Case(49152, _HALF, "token", rows=5, slots=4, candidates=64, is_ragged=True),
    "SmolLM2, greedy": Case(49152, _HALF, "greedy", rows=5, slots=4, is_ragged=True, is_strided=True),
    "Qwen3": Case(151936, rows=2, slots=7, candidates=512),
    "Qwen3, float32": Case(151936, _WHOLE, rows=4, slots=3, candidates=300, is_ragged=True, is_gappy=True),
    "Qwen3, token": Case(151936, torch.bfloat16, "token", rows=4, slots=3, candidates=64, is_strided=True),
    "Qwen3, greedy": Case(151936, torch.bfloat16, "greedy", rows=2, slots=7),
    "Gemma": Case(262208, _WHOLE, rows=2, slots=2, candidates=64, is_gappy=True),
    "8 rows": _SERVED,
    "8 rows, token": replace(_SERVED, mode="token"),
    "8 rows, greedy": replace(_SERVED, mode="greedy"),
}
SPEC = KernelSpec(
    name="verify",
    cases=CASES,
    short=("small", "token", "block", "greedy", "tail", "no slots", "greedy, banned"),
    self_check="small",
    benched=("8 rows", "8 rows, token", "8 rows, greedy"),
    compare=compare,
    ways=ways,
    least=least,
)
