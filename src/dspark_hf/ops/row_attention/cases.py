"""Cases of [`row_attention`]: ragged rows, windows, tails, strides, padding, and columns that must not be read.

Shapes: B rows, N queries of all rows, Q query heads, H key/value heads, C columns, D head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from dspark_hf.ops.blocks import FULL_VIEW, LayerView
from dspark_hf.ops.spec import KernelSpec, Least

from .reference import row_attention_reference, seen_columns
from .rows import Rows

_CAUSAL = LayerView(is_causal=True)
# Weights are rounded to the states' dtype before they meet the values, as in torch's own fused attention.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass(frozen=True)
class Case:
    """One pass.

    Attributes:
        starts, counts: As of [`Rows`].
        heads (`tuple[int, int, int]`): Query heads, key/value heads, dimensions.
        view ([`LayerView`]): What queries see.
        first (`int`): Column that keys begin with.
        hidden (`float`): Share of the first columns that hold no token.
        stretches (`int`, *optional*): Stretches that rows are cut into; the kernel's own choice, if not given.
        strided (`bool`): Whether states are parts of larger tensors, tokens before heads.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    heads: tuple[int, int, int]
    view: LayerView = FULL_VIEW
    dtype: torch.dtype = torch.float32
    first: int = 0
    hidden: float = 0.0
    stretches: int | None = None
    strided: bool = False


_RAGGED = Case((5, 0, 70, 17), (3, 1, 8, 2), (4, 2, 64))
_SHORT = {
    "block": _RAGGED,
    "causal": replace(_RAGGED, view=_CAUSAL, dtype=torch.bfloat16),
    "stretches": Case((600, 3, 299), (3, 4, 1), (4, 2, 64), _CAUSAL, stretches=4),
    "window": replace(_RAGGED, view=LayerView(7, True), heads=(6, 2, 80), dtype=torch.float16),
    "anchored": replace(_RAGGED, view=LayerView(9, False, True)),
    "hidden": replace(_RAGGED, starts=(9, 20, 70, 17), view=_CAUSAL, hidden=0.5, strided=True),
    "first": Case((305, 303, 300), (3, 1, 8), (3, 1, 128), LayerView(20, True), first=281),
}
# Rows of as many queries each, which packages' attention is tried with.
_EVEN = Case((35, 30, 60), (3, 3, 3), (4, 2, 64), dtype=torch.bfloat16)
EVEN = (_EVEN, replace(_EVEN, view=_CAUSAL), replace(_EVEN, view=LayerView(20, True), first=11),
        replace(_EVEN, view=LayerView(20), dtype=torch.float16))  # fmt: skip
_LONG = {
    f"{name} {heads[2]} {dtype}".replace("torch.", "") + (" stretches" if stretches else ""): replace(
        _RAGGED, starts=(5, 0, 333, 64), heads=heads, view=view, dtype=dtype, stretches=stretches,
        strided=stretches is not None,
    )
    for name, view in {
        "block": FULL_VIEW, "causal": _CAUSAL, "window": LayerView(130, True), "open window": LayerView(33),
        "anchored": LayerView(64, False, True),
    }.items()
    for heads in ((2, 2, 64), (7, 1, 96), (8, 2, 128), (2, 1, 256))
    for dtype in _TOLERANCES
    for stretches in (None, 3)
} | {
    "one token": Case((0,), (1,), (1, 1, 64)),
    "long block": Case((40, 9), (33, 5), (8, 1, 64), _CAUSAL),
    "hidden rows": Case((12, 9, 30), (4, 4, 2), (4, 4, 64), _CAUSAL, hidden=1.0),
    "tiny heads": Case((4, 30), (3, 2), (4, 2, 8), _CAUSAL),
}  # fmt: skip
# A target's round of 0 to 7 drafts and a drafter's, as Qwen3-4B has them: 32 query heads, 8 key/value heads of 128.
_SERVED = {
    "verify 8 rows": Case(
        (2048, 1024, 1500, 700, 1990, 300, 1200, 1800), (8, 5, 3, 1, 2, 6, 7, 4), (32, 8, 128), _CAUSAL, torch.bfloat16
    ),
    "draft 8 rows": Case(
        (2048, 1024, 1500, 700, 1990, 300, 1200, 1800), (7,) * 8, (32, 8, 128), FULL_VIEW, torch.bfloat16
    ),
    "verify 1 row": Case((4096,), (8,), (32, 8, 128), _CAUSAL, torch.bfloat16),
}  # fmt: skip
CASES = _SHORT | _LONG | _SERVED


def make(case: Case, device: torch.device) -> dict[str, Tensor | Rows]:
    """The tensors of a `case` on a `device`, by [`row_attention`]'s arguments; what no query may read is NaN."""
    generator = torch.Generator().manual_seed(0)
    num_query_heads, num_heads, head_dim = case.heads
    ends = [start + count for start, count in zip(case.starts, case.counts, strict=True)]
    num_rows, num_columns = len(ends), max(ends) - case.first + 3

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype)

    if case.strided:
        query = normal(sum(case.counts), num_query_heads + 1, head_dim + 16)[:, 1:, 16:]
        key, value = normal(num_rows, num_columns, 2, num_heads, head_dim).transpose(1, 3).unbind(2)
    else:
        query = normal(sum(case.counts), num_query_heads, head_dim)
        key, value = normal(2, num_rows, num_heads, num_columns, head_dim)
    visible = None
    if case.hidden:
        num_first = min(case.starts)
        visible = torch.rand(num_rows, num_first, generator=generator) >= case.hidden
    for row, end in enumerate(ends):
        for states in (key, value):
            states[row, :, end - case.first :] = float("nan")
            if visible is not None:
                states[row, :, : visible.shape[1]].masked_fill_(~visible[row, :, None], float("nan"))
    offsets = [0, *accumulate(case.counts)][:-1]
    numbers = torch.tensor([case.starts, case.counts, offsets], dtype=torch.int32, device=device)
    visible = None if visible is None else visible.to(device)
    return {
        "query": query.to(device), "key": key.to(device), "value": value.to(device),
        "rows": Rows(*numbers, max(case.counts), visible), "view": case.view,
    }  # fmt: skip


def compare(case: Case, device: torch.device) -> str | None:
    """How the kernel differs from the reference in float64 in a `case` on a `device`; None where it does not."""
    return difference(case, device, _kernel(case))


def _kernel(case: Case) -> Callable[..., Tensor]:
    from .triton import row_attention_kernel

    return partial(row_attention_kernel, num_stretches=case.stretches)


def difference(case: Case, device: torch.device, attend: Callable[..., Tensor]) -> str | None:
    """[`compare`] of a function `attend` with [`row_attention`]'s arguments, in a `case` on a `device`."""
    given = make(case, device)
    out = attend(**given, scaling=case.heads[2] ** -0.5, first=case.first)
    exact = {name: states.double() if isinstance(states, Tensor) else states for name, states in given.items()}
    del exact["rows"], exact["view"]
    expected = row_attention_reference(
        **exact, rows=given["rows"], view=case.view, scaling=case.heads[2] ** -0.5, first=case.first
    )
    difference = (out.double() - expected).abs().nan_to_num(float("inf")).max().item()
    limit = _TOLERANCES[case.dtype] * max(1.0, expected.abs().max().item())
    return (
        None if difference <= limit else f"outputs differ by {difference:.1e} from the reference, at most {limit:.1e}"
    )


def ways(case: Case, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """A `case` on a `device`, by the kernel, and by torch's attention with a mask over padded rows."""
    given = make(case, device)
    query, key, value = (given[name].nan_to_num(0.0) for name in ("query", "key", "value"))
    rows, most = given["rows"], given["rows"].most
    group = case.heads[0] // case.heads[1]
    columns = torch.arange(case.first, case.first + key.shape[2], device=device)
    seen = torch.stack([seen_columns(start, most, columns, case.view) for start in case.starts])
    mask = torch.zeros((), dtype=case.dtype, device=device).where(seen, torch.finfo(case.dtype).min)
    mask = mask[:, None, None].expand(-1, 1, group, -1, -1).flatten(2, 3)
    places = torch.tensor([[min(step, count - 1) for step in range(most)] for count in case.counts], device=device)
    places = places + rows.offsets.unsqueeze(1)
    is_token = torch.arange(most, device=device) < rows.counts.unsqueeze(1)

    def by_torch() -> Tensor:
        queries = query[places].unflatten(2, (case.heads[1], group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(queries, key, value, mask)
        out = out.unflatten(2, (group, most)).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return out[is_token]

    by_kernel = partial(_kernel(case), **given, scaling=case.heads[2] ** -0.5, first=case.first)
    return {"torch": by_torch, "triton": by_kernel}


def least(case: Case) -> Least:
    """What a `case` takes at least: columns that any query of their row sees, queries and outputs, each once."""
    num_query_heads, num_heads, head_dim = case.heads
    columns = torch.arange(
        case.first, max(start + count for start, count in zip(case.starts, case.counts, strict=True))
    )
    seen = [
        seen_columns(start, count, columns, case.view) for start, count in zip(case.starts, case.counts, strict=True)
    ]
    num_columns = sum(int(row.any(0).sum()) for row in seen)
    num_states = 2 * sum(case.counts) * num_query_heads * head_dim + 2 * num_columns * num_heads * head_dim
    num_pairs = sum(int(row.sum()) for row in seen)
    return Least(case.dtype.itemsize * num_states, 4 * num_query_heads * head_dim * num_pairs)


SPEC = KernelSpec("row_attention", CASES, tuple(_SHORT), "causal", tuple(_SERVED), compare, ways, least)
