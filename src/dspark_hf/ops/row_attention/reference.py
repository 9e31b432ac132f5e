"""Attention of packed queries over rows of different lengths as its formula reads, row by row.

Shapes: B rows, N queries of all rows, Q query heads, H key/value heads, C columns, D head dim.
"""

import torch
from torch import Tensor

from dspark_hf.ops.blocks import FULL_VIEW, LayerView


def seen_columns(start: int, count: int, columns: Tensor, view: LayerView) -> Tensor:
    """Which columns the queries at `start` to `start + count - 1` see in a `view`, bool `(count, columns)`."""
    places = start + torch.arange(count, device=columns.device).unsqueeze(1)
    seen = columns <= (places if view.is_causal else start + count - 1)
    if view.window is not None:
        seen = seen & (columns >= (start if view.is_anchored else places + 1) - view.window)
    return seen.expand(count, -1)


def row_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, rows, view: LayerView = FULL_VIEW, *, scaling: float, first: int = 0
) -> Tensor:
    """As of [`row_attention`]; computed in float32, or in float64 where that is what is given."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // key.shape[1]
    out = query.new_zeros(query.shape)
    columns = torch.arange(first, first + key.shape[2], device=query.device)
    for row, (start, count, offset) in enumerate(
        zip(rows.starts.tolist(), rows.counts.tolist(), rows.offsets.tolist(), strict=True)
    ):
        seen = seen_columns(start, count, columns, view)
        if rows.visible is not None:
            known = columns < rows.visible.shape[1]
            seen = seen & (~known | rows.visible[row, columns.clamp_max(rows.visible.shape[1] - 1)])
        of_row = slice(offset, offset + count)
        # What no query of the row sees may hold anything.
        used = seen.any(0)
        keys, values = (
            states[row][:, used].to(dtype).repeat_interleave(group, 0) for states in (key, value)
        )  # [Q, used, D]
        scores = scaling * query[of_row].to(dtype).transpose(0, 1) @ keys.transpose(1, 2)  # [Q, count, used]
        scores = scores.masked_fill(~seen[:, used], float("-inf"))
        # A query that sees nothing gets zeros.
        weights = torch.softmax(scores, -1).nan_to_num(0.0)
        out[of_row] = (weights @ values).transpose(0, 1).to(out.dtype)
    return out
