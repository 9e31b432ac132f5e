"""Attention of a round's queries: every row has a context length of its own, and nothing is padded.

Shapes: B rows, N queries of all rows, Q query heads, H key/value heads, C columns, D head dim.
"""

from torch import Tensor

from dspark_hf.ops.blocks import FULL_VIEW, LayerView
from dspark_hf.ops.dispatch import allows_packages, kernel_for

from . import flash
from .reference import row_attention_reference
from .rows import Rows, even_rows


def row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Rows,
    view: LayerView = FULL_VIEW,
    *,
    scaling: float,
    first: int = 0,
) -> Tensor:
    """Softmax attention of a block's queries over their row's context and the block itself.

    The block's own keys and values already stand in their columns, so that a query at column c sees columns up to the
    end of its row's queries, or up to c where the view is causal, and no further back than the view's window.

    Args:
        query (`torch.Tensor` of shape `(queries, query_heads, dim)`): Queries, row behind row.
        key (`torch.Tensor` of shape `(rows, heads, columns, dim)`): Keys. Columns that no query sees may hold
            anything. Query heads that share a key head stand side by side.
        value (`torch.Tensor` of shape `(rows, heads, columns, dim)`): Values.
        rows ([`Rows`]): Where the queries stand.
        view ([`~ops.blocks.LayerView`], *optional*): What a query sees; context and whole block, if not given.
        scaling (`float`): What scores are multiplied with.
        first (`int`, *optional*, defaults to 0): Column that `key` and `value` begin with.

    Returns:
        `torch.Tensor` of shape `(queries, query_heads, dim)`, contiguous, in the queries' dtype; sums and softmax are
        float32. A query that sees nothing gets zeros.

    Raises:
        `ValueError`: If heads do not share keys evenly, or rows and keys differ in number.
    """
    if query.shape[1] % key.shape[1]:
        raise ValueError(
            f"{query.shape[1]} query heads cannot share {key.shape[1]} key heads evenly. Give a multiple of them."
        )
    if len(rows.starts) != len(key):
        raise ValueError(f"rows has {len(rows.starts)} rows, but key {len(key)}. Give one start per row of key.")
    if has_kernel(query, key, value):
        given = (query, key, value, rows, view, scaling, first)
        if allows_packages() and flash.fits(query, key, value, rows, view):
            function = flash.flash_for(query.device).function
            if function is not None:
                return flash.attend(function, *given)
        return kernel_for("row_attention", query.device).row_attention_kernel(*given)
    return row_attention_reference(query, key, value, rows, view, scaling=scaling, first=first)


def has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel runs on such states; where not, a mask and torch's attention are faster than the reference.

    The arguments are as of [`row_attention`].
    """
    kernel = kernel_for("row_attention", query.device)
    return kernel is not None and kernel.covers(query, key, value)


__all__ = ["Rows", "even_rows", "has_kernel", "row_attention", "row_attention_reference"]
