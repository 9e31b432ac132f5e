"""Attention of packed queries over rows of different lengths, as one pass over each row's keys.

Per query: softmax(scaling * q K^T) V over the columns [low, high) that it sees. One program owns one row, one
key/value head, one tile of that row's (token, query head) pairs and one stretch of its columns, so that the query
heads of a group read their keys once. It keeps a running maximum m, sum l and product a, and rescales l and a by
2^(m - m') where the maximum grows. Rows that are few and long are cut into several stretches, whose results a second
kernel adds up weighted by 2^(log-norm). Memory: one float32 output per stretch; no mask, no scores.
Nothing outside of [low, high) is read: buffers may hold anything there.
"""

from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from dspark_hf.ops.blocks import LayerView
from dspark_hf.ops.dispatch import is_interpreted
from dspark_hf.ops.spec import Configuration, is_aligned

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# More columns than any row has.
_ALL = 1 << 30
# A stretch reads its queries and writes and reads a float32 output, 10 bytes a query and dimension, beside the 4 bytes
# of a column's keys and values in half precision: with 24 columns a query that is a tenth of what is read anyway.
_COLUMNS_A_QUERY = 24
# Most queries of a program, by dimensions of a head: accumulators stay in registers.
_MOST_QUERIES = {64: 128, 128: 128, 256: 64}
HEAD_DIMS = tuple(_MOST_QUERIES)
# Of these neither value nor alignment makes a form of the kernels of its own.
_NUMBERS = (
    "num_heads", "group", "num_visible", "visible_row", "first", "window", "is_causal", "is_anchored", "stretch",
    "num_stretches", "num_tokens",
)  # fmt: skip
_ANYWHERE = ("starts", "counts", "offsets", "visible")


@triton.jit
def _span(starts, counts, row, first, window, is_causal, is_anchored, tile, group, BLOCK_M: tl.constexpr):
    """A row's first column, the columns [low, high) that a tile of its queries sees, and the queries in it."""
    start = tl.load(starts + row).to(tl.int32) - first
    count = tl.load(counts + row).to(tl.int32)
    first_token = tile * BLOCK_M // group
    last_token = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // group, count - 1)
    nearest = tl.where(is_anchored != 0, 0, 1)
    begin = tl.maximum(start + nearest - window, 0)
    low = tl.maximum(start + (first_token + 1) * nearest - window, 0)
    high = tl.where(is_causal != 0, start + last_token + 1, start + count)
    high = tl.where(first_token < count, high, low)
    return start, count, begin, low, high


@triton.jit
def _dot(left, right, total, WIDEN: tl.constexpr):
    """`total + left @ right`, float32. The interpreter multiplies no bfloat16."""
    if WIDEN:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _queries(tile, head, count, group, BLOCK_M: tl.constexpr):
    """Token and query head of each of a tile's queries, and whether there is one."""
    places = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = places // group
    return tokens, head * group + places % group, tokens < count


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ANYWHERE)
def attend_kernel(
    query, key, value, out, partial, norms, starts, counts, offsets, visible, num_heads, group, head_dim,
    query_token, query_head, key_row, key_head, key_column, value_row, value_head, value_column,
    visible_row, num_visible, out_token, first, window, is_causal, is_anchored, stretch, num_stretches, num_tokens,
    scaling,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Queries of one tile over one stretch of their row's columns."""
    row, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    part, tile = tl.program_id(1), tl.program_id(2)
    start, count, begin, low, high = _span(
        starts, counts, row, first, window, is_causal, is_anchored, tile, group, BLOCK_M
    )
    low = tl.maximum(low, begin + part * stretch)
    high = tl.minimum(high, begin + (part + 1) * stretch)
    if low < high:
        tokens, heads, is_query = _queries(tile, head, count, group, BLOCK_M)
        dims = tl.arange(0, BLOCK_D)
        in_head = dims < head_dim
        offset = tl.load(offsets + row).to(tl.int64)
        is_query_dim = is_query[:, None] & in_head[None, :]
        query_at = (offset + tokens)[:, None] * query_token + heads[:, None] * query_head + dims[None, :]
        queries = tl.load(query + query_at, mask=is_query_dim, other=0.0)
        # What each query sees.
        lowest = tl.where(is_anchored != 0, start, start + tokens + 1) - window
        highest = tl.where(is_causal != 0, start + tokens + 1, start + count)

        wide_row = row.to(tl.int64)
        key += wide_row * key_row + head * key_head
        value += wide_row * value_row + head * value_head
        steps = tl.arange(0, BLOCK_N)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        product = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for column in range(low, high, BLOCK_N):
            columns = column + steps
            is_there = columns < high
            at = wide_row * visible_row + columns
            is_seen = tl.load(visible + at, mask=is_there & (columns < num_visible), other=1)
            is_seen &= is_there
            keys = tl.load(
                key + (columns.to(tl.int64) * key_column)[None, :] + dims[:, None],
                mask=is_seen[None, :] & in_head[:, None], other=0.0,
            )  # fmt: skip
            scores = _dot(queries, keys, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), WIDEN) * (scaling * _LOG2_E)
            is_seen_by = (
                is_seen[None, :] & (columns[None, :] >= lowest[:, None]) & (columns[None, :] < highest[:, None])
            )
            scores = tl.where(is_seen_by, scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            # A query that has seen nothing yet would ask for inf - inf.
            finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
            shrink = tl.exp2(top - finite_top)
            weights = tl.exp2(scores - finite_top[:, None])
            values = tl.load(
                value + (columns.to(tl.int64) * value_column)[:, None] + dims[None, :],
                mask=is_seen[:, None] & in_head[None, :], other=0.0,
            )  # fmt: skip
            total = total * shrink + tl.sum(weights, 1)
            product = _dot(weights.to(values.dtype), values, product * shrink[:, None], WIDEN)
            top = new_top

        product = product / tl.where(total == 0.0, 1.0, total)[:, None]
        if num_stretches == 1:
            out_at = (offset + tokens)[:, None] * out_token + heads[:, None] * head_dim + dims[None, :]
            tl.store(out + out_at, product.to(out.dtype.element_ty), mask=is_query_dim)
        else:
            places = (offset + part * num_tokens + tokens) * (num_heads * group) + heads
            tl.store(partial + places[:, None] * head_dim + dims[None, :], product, mask=is_query_dim)
            # The log-norm is -inf where nothing was seen, as the sum is 0 there.
            tl.store(norms + places, tl.where(total == 0.0, float("-inf"), top + tl.log2(total)), mask=is_query)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ANYWHERE)
def combine_kernel(
    out, partial, norms, starts, counts, offsets, num_heads, group, head_dim,
    out_token, first, window, is_causal, is_anchored, stretch, num_tokens,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The stretches of a tile's queries, each weighted by its share of the softmax's norm."""
    row, head, tile = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads, tl.program_id(1)
    start, count, begin, low, high = _span(
        starts, counts, row, first, window, is_causal, is_anchored, tile, group, BLOCK_M
    )
    if low < high:
        tokens, heads, is_query = _queries(tile, head, count, group, BLOCK_M)
        dims = tl.arange(0, BLOCK_D)
        is_query_dim = is_query[:, None] & (dims < head_dim)[None, :]
        offset = tl.load(offsets + row).to(tl.int64)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        product = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for part in range((low - begin) // stretch, (high - begin + stretch - 1) // stretch):
            places = (offset + part * num_tokens + tokens) * (num_heads * group) + heads
            norm = tl.load(norms + places, mask=is_query, other=float("-inf"))
            new_top = tl.maximum(top, norm)
            finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
            shrink, share = tl.exp2(top - finite_top), tl.exp2(norm - finite_top)
            parts = tl.load(partial + places[:, None] * head_dim + dims[None, :], mask=is_query_dim, other=0.0)
            total = total * shrink + share
            product = product * shrink[:, None] + parts * share[:, None]
            top = new_top
        product = product / tl.where(total == 0.0, 1.0, total)[:, None]
        out_at = (offset + tokens)[:, None] * out_token + heads[:, None] * head_dim + dims[None, :]
        tl.store(out + out_at, product.to(out.dtype.element_ty), mask=is_query_dim)


def covers(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel has a configuration for such states, arguments as of [`row_attention_kernel`]."""
    return (
        query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= max(HEAD_DIMS)
        # Loads are as wide as they can be; narrow heads are for tests.
        and (query.shape[-1] % 16 == 0 or is_interpreted())
    )


def configuration(head_dim: int, num_queries: int, dtype: torch.dtype) -> dict[str, int]:
    """Constants of a launch: sizes of its blocks, warps and stages.

    Args:
        head_dim (`int`): Dimensions of a head, D.
        num_queries (`int`): Most (token, query head) pairs of one row and key/value head.
        dtype (`torch.dtype`): Of queries, keys and values.
    """
    block_d = next(size for size in HEAD_DIMS if head_dim <= size)
    most = _MOST_QUERIES[block_d] if dtype.itemsize == 2 else 16
    block_m = min(max(16, triton.next_power_of_2(num_queries)), most)
    block_n = 64 if dtype.itemsize == 2 and block_d < 256 else 32
    is_large = block_m >= 64 and block_m * block_d >= 128 * 64 if dtype.itemsize == 2 else block_d > 64
    # A second stage of the loop would not fit into the registers of sm_80 there.
    num_stages = 1 if block_m * block_d >= 128 * 128 else 2
    blocks = {"BLOCK_D": block_d, "BLOCK_M": block_m, "BLOCK_N": block_n}
    return {**blocks, "num_warps": 8 if is_large else 4, "num_stages": num_stages}


def row_attention_kernel(
    query: Tensor, key: Tensor, value: Tensor, rows, view: LayerView, scaling: float, first: int,
    num_stretches: int | None = None,
) -> Tensor:  # fmt: skip
    """As of [`dspark_hf.ops.row_attention.row_attention`].

    Rows are cut into `num_stretches`; if not given, into as many as their lengths allow and the device has use for.
    """
    num_tokens, num_query_heads, head_dim = query.shape
    num_rows, num_heads, num_columns, _ = key.shape
    # No form is compiled for others, which caches and projections do not make.
    query, key, value = (
        states if is_aligned(states) else states.clone(memory_format=torch.contiguous_format)
        for states in (query, key, value)
    )
    out = query.new_empty(num_tokens, num_query_heads, head_dim)
    group = num_query_heads // num_heads
    sizes = configuration(head_dim, rows.most * group, query.dtype)
    num_tiles = triton.cdiv(rows.most * group, sizes["BLOCK_M"])
    seen = num_columns if view.window is None else min(num_columns, view.window + rows.most)
    if num_stretches is None:
        most = max(seen // (_COLUMNS_A_QUERY * sizes["BLOCK_M"]), 1)
        # Two programs a multiprocessor.
        num_stretches = min(triton.cdiv(2 * _num_processors(query.device), num_rows * num_heads * num_tiles), most)
    stretch = triton.cdiv(seen, num_stretches)
    num_kept = num_stretches if num_stretches > 1 else 0
    partial = query.new_empty(num_kept, num_tokens, num_query_heads, head_dim, dtype=torch.float32)
    norms = query.new_empty(num_kept, num_tokens, num_query_heads, dtype=torch.float32)
    nothing = query.new_zeros(0, 0, dtype=torch.bool)
    visible = nothing if rows.visible is None else rows.visible[:, first:]
    # A mask may be a transposed one.
    visible = visible if visible.stride(1) == 1 else visible.contiguous()
    places = [part.contiguous() for part in (rows.starts, rows.counts, rows.offsets)]
    span = first, _ALL if view.window is None else view.window, int(view.is_causal), int(view.is_anchored), stretch
    heads = num_heads, group, head_dim
    attend_kernel[num_rows * num_heads, num_stretches, num_tiles](
        query, key, value, out, partial, norms, *places, visible, *heads,
        query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3],
        visible.stride(0), visible.shape[1], out.stride(0), *span, num_stretches, num_tokens, scaling,
        **sizes, WIDEN=is_interpreted() and query.dtype == torch.bfloat16,
    )  # fmt: skip
    if num_stretches > 1:
        combine_kernel[num_rows * num_heads, triton.cdiv(rows.most * group, 16)](
            out, partial, norms, *places, *heads, out.stride(0), *span, num_tokens,
            BLOCK_D=sizes["BLOCK_D"], BLOCK_M=16, num_warps=4,
        )  # fmt: skip
    return out


def _num_processors(device: torch.device) -> int:
    # An H100's in the interpreter, which then moves the bytes that one would.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def configurations() -> list[Configuration]:
    """Every form of the kernels that [`row_attention_kernel`] chooses among."""
    aligned = (
        "query", "key", "value", "out", "partial", "norms", "head_dim", "query_token", "query_head", "key_row",
        "key_head", "key_column", "value_row", "value_head", "value_column", "out_token",
    )  # fmt: skip
    types = dict.fromkeys((*_NUMBERS, *aligned), "i32") | dict.fromkeys(("starts", "counts", "offsets"), "*i32")
    types |= {"visible": "*u1", "scaling": "fp32", "partial": "*fp32", "norms": "*fp32"}
    found = []
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for (name, dtype), dim in product(dtypes.items(), HEAD_DIMS):
        of_dtype = types | dict.fromkeys(("query", "key", "value", "out"), f"*{name}")
        forms = {size["BLOCK_M"]: size for size in (configuration(dim, 2**power, dtype) for power in range(10))}
        for block_m, sizes in forms.items():
            constants = {key: size for key, size in sizes.items() if key.startswith("BLOCK")} | {"WIDEN": False}
            title = f"attend, {name}, heads of {dim}, {block_m} queries"
            found.append(
                Configuration.of(
                    title, attend_kernel, of_dtype, constants, sizes["num_warps"], aligned, sizes["num_stages"]
                )
            )
        constants = {"BLOCK_D": dim, "BLOCK_M": 16}
        found.append(
            Configuration.of(f"combine, {name}, heads of {dim}", combine_kernel, of_dtype, constants, 4, aligned)
        )
    return found
