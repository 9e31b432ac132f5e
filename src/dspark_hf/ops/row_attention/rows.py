"""Where the queries of a pass stand among its rows."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Where the queries of a pass stand; the tensors are on the pass's device.

    Attributes:
        starts (`torch.IntTensor` of shape `(rows,)`): Column of each row's first query; context stands before it.
        counts (`torch.IntTensor` of shape `(rows,)`): Queries of each row.
        offsets (`torch.IntTensor` of shape `(rows,)`): Place of each row's first query among those of all rows.
        most (`int`): Queries that a row has at most.
        visible (`torch.BoolTensor` of shape `(rows, columns)`, *optional*): Which of the first columns hold tokens;
            all, if not given. Later columns always do.
    """

    starts: Tensor
    counts: Tensor
    offsets: Tensor
    most: int
    visible: Tensor | None = None


def even_rows(starts: Tensor, num_queries: int, visible: Tensor | None = None) -> Rows:
    """Rows of as many queries each, made without a look at where they start.

    Args:
        starts (`torch.LongTensor` of shape `(rows,)`): Column of each row's first query.
        num_queries (`int`): Queries of each row.
        visible (`torch.BoolTensor` of shape `(rows, columns)`, *optional*): As of [`Rows`].
    """
    offsets = torch.arange(0, len(starts) * num_queries, num_queries, dtype=torch.int32, device=starts.device)
    return Rows(starts.int(), torch.full_like(offsets, num_queries), offsets, num_queries, visible)
