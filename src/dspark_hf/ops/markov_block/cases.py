"""Cases of the sequential stage: what the kernel is held to, timed on, and tried with at its first use.

Shapes: B rows, n slots, k candidates, V vocabulary, D draft vocabulary, E hidden size, r rank.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dspark_hf.ops.counter_random import draw_key, uniforms
from dspark_hf.ops.spec import KernelSpec, Least

from . import reference
from .weights import BlockHeads, DraftedBlock

# Probabilities of float32 sums over a rank, and a confidence that is rounded to the heads' dtype.
_TOLERANCE = 1e-5
_ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
_KEY, _STREAM = 2**41 + 5, 32768


@dataclass(frozen=True)
class Case:
    """A call.

    Attributes:
        vocab (`int`): V.
        dtype (`torch.dtype`): Of logits, states and heads.
        temperature (`float`, *optional*): Draws; without it the best is taken.
        rows (`int`): B.
        slots (`int`): n.
        candidates (`int`): k.
        rank (`int`): r.
        hidden_size (`int`): E.
        draft_vocab (`int`, *optional*): D, where the draft vocabulary is reduced.
        confidence (`str`): `"none"`, or what the confidence head reads: `"states"`, `"both"`.
        is_strided (`bool`): Whether states and anchors are parts of something larger, which is NaN elsewhere.
    """

    vocab: int
    dtype: torch.dtype = torch.bfloat16
    temperature: float | None = None
    rows: int = 3
    slots: int = 4
    candidates: int = 64
    rank: int = 256
    hidden_size: int = 96
    draft_vocab: int | None = None
    confidence: str = "both"
    is_strided: bool = False


class Inputs:
    """What a `case` is called with on a `device`, made on the CPU from a seed of its own."""

    def __init__(self, case: Case, device: torch.device):
        generator = torch.Generator().manual_seed(case.vocab + case.rank)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=generator)).to(device, case.dtype)

        num_entries = case.draft_vocab or case.vocab
        best = random(case.rows, case.slots, num_entries, scale=3.0).float().topk(case.candidates)
        self.logits, self.entries = best.values.to(case.dtype), best.indices
        tokens = None
        if case.draft_vocab is not None:
            tokens = torch.randperm(case.vocab, generator=generator)[:num_entries].sort().values.to(device)
        width = {"none": 0, "states": case.hidden_size, "both": case.hidden_size + case.rank}[case.confidence]
        weight = random(1, width, scale=width**-0.5) if width else None
        bias = random(1) if case.confidence == "both" else None
        scale = (2 / case.rank) ** 0.5
        # Tokens behind the last row of W1 take that one.
        embedding = random(case.vocab - 3, case.rank)
        self.heads = BlockHeads(embedding, random(num_entries, case.rank, scale=scale), tokens, weight, bias)
        self.hidden = random(case.rows, case.slots, case.hidden_size)
        self.anchor_ids = torch.randint(case.vocab, (case.rows,), generator=generator).to(device)
        self.anchor_ids[0] = case.vocab - 1
        if case.is_strided:
            larger = self.hidden.new_full((case.rows, case.slots + 2, case.hidden_size + 3), torch.nan)
            larger[:, 1:-1, 1:-2] = self.hidden
            self.hidden = larger[:, 1:-1, 1:-2]
            self.anchor_ids = torch.stack([self.anchor_ids, self.anchor_ids + 10**9], 1)[:, 0]


def compare(case: Case, device: torch.device) -> str | None:
    """How the kernel on a `device` differs from the reference in float64 along the kernel's own tokens in a `case`, in
    words; None if it does not.
    """
    from . import triton

    inputs = Inputs(case, device)
    key = None if case.temperature is None else torch.tensor([_KEY], device=device)
    found = triton.markov_block(
        inputs.logits, inputs.entries, inputs.anchor_ids, inputs.hidden, inputs.heads, case.temperature, key
    )
    tokens = inputs.heads.draft_tokens
    is_chosen = (inputs.entries if tokens is None else tokens[inputs.entries]) == found.ids.unsqueeze(-1)
    if not is_chosen.any(-1).all():
        return f"tokens {found.ids.tolist()} are not all among the candidates"
    places = is_chosen.long().argmax(-1)
    heads = BlockHeads(*(part.double() if _is_real(part) else part for part in inputs.heads))
    given = (inputs.logits.double(), inputs.entries, inputs.anchor_ids, inputs.hidden.double(), heads)
    exact = reference.markov_block(*given, case.temperature or 1.0, lambda _, slot: places[:, slot].clone())
    return _difference(case, found, exact, places)


def _difference(case: Case, found: DraftedBlock, exact: DraftedBlock, places: Tensor) -> str | None:
    pairs = [("max_probs", found.max_probs, exact.max_probs, _TOLERANCE)]
    if exact.confidence_logits is not None:
        pairs.append(("confidence", found.confidence_logits, exact.confidence_logits, _ROUNDING[case.dtype]))
    if case.temperature is not None:
        pairs.append(("probs", found.probs, exact.probs, _TOLERANCE))
    for name, one, other, tolerance in pairs:
        error = (one.double() - other).abs().max()
        if not error <= tolerance * max(1.0, float(other.abs().max())):
            return f"{name} are off by {float(error):.2g}"
    chosen = exact.probs.gather(-1, places.unsqueeze(-1)).squeeze(-1)
    if case.temperature is None:
        return None if bool((chosen >= exact.max_probs * (1 - _TOLERANCE)).all()) else "tokens are not the best"
    counters = (row * 65536 + _STREAM + slot for row in range(case.rows) for slot in range(case.slots))
    numbers = uniforms(_KEY, counters).view(case.rows, case.slots).to(chosen.device)
    high = exact.probs.cumsum(-1).gather(-1, places.unsqueeze(-1)).squeeze(-1)
    is_right = (high - chosen - _TOLERANCE <= numbers) & (numbers <= high + _TOLERANCE)
    return None if bool(is_right.all()) else "tokens are not those of the random numbers"


def _is_real(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point()


def ways(case: Case, device: torch.device) -> dict[str, Callable[[], Any]]:
    """A `case` on a `device` as torch and as the kernel compute it."""
    from . import triton

    inputs, generator = Inputs(case, device), torch.Generator(device=device).manual_seed(0)
    given = (inputs.logits, inputs.entries, inputs.anchor_ids, inputs.hidden, inputs.heads, case.temperature)
    key_of = (lambda: None) if case.temperature is None else (lambda: draw_key(generator, device))
    return {
        "torch": lambda: reference.markov_block(*given, reference.draws(generator)),
        "triton": lambda: triton.markov_block(*given, key_of()),
    }


def least(case: Case) -> Least:
    """The least that a `case` moves: rows of W2 and W1, candidates, states, and what is written."""
    size = case.dtype.itemsize
    of_candidate = case.rank * size + size + 8 + (4 if case.temperature is not None else 0)
    of_token = 8 if case.draft_vocab is not None else 0
    has_confidence = case.confidence != "none"
    of_slot = case.rank * size + of_token + 8 + 4 + has_confidence * (case.hidden_size * size + size)
    once = has_confidence * (case.hidden_size + case.rank * (case.confidence == "both")) * size
    return Least(case.rows * case.slots * (case.candidates * of_candidate + of_slot) + case.rows * 8 + once)


_HALF, _WHOLE = torch.float16, torch.float32
# A round as a drafter for Qwen3-4B has it.
_SERVED = Case(151936, temperature=1.0, rows=8, slots=7, candidates=512, hidden_size=2560)
CASES = {
    "small": Case(1000, temperature=0.8, rows=2, slots=3),
    "greedy": Case(1000, _WHOLE, candidates=50, rank=80, confidence="states", is_strided=True),
    "reduced": Case(1000, _HALF, 1.3, candidates=7, rank=48, draft_vocab=300, hidden_size=1500, is_strided=True),
    "one slot": Case(1000, torch.bfloat16, rows=1, slots=1, candidates=1, rank=16, confidence="none"),
    "SmolLM2": Case(49152, torch.bfloat16, 0.7, candidates=512, hidden_size=576),
    "SmolLM2, greedy": Case(49152, _HALF, candidates=512, hidden_size=576, draft_vocab=32000),
    "Qwen3": Case(151936, torch.bfloat16, 1.0, rows=2, slots=7, candidates=512, hidden_size=2560),
    "Qwen3, greedy": Case(151936, torch.bfloat16, rows=2, slots=7, candidates=512, hidden_size=2560),
    "Qwen3, float32": Case(151936, _WHOLE, 0.3, rows=1, slots=7, candidates=300, hidden_size=2560),
    "8 rows": _SERVED,
    "8 rows, greedy": replace(_SERVED, temperature=None),
}
SPEC = KernelSpec(
    name="markov_block",
    cases=CASES,
    short=("small", "greedy", "reduced", "one slot"),
    self_check="small",
    benched=("8 rows", "8 rows, greedy"),
    compare=compare,
    ways=ways,
    least=least,
)
