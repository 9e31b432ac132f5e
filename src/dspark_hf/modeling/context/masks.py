"""What blocks see of their rows' columns."""

import torch
from torch import Tensor

from dspark_hf.ops.blocks import FULL_VIEW, LayerView


def block_mask(places: Tensor, num_columns: int, view: LayerView) -> Tensor:
    """Which of the first columns blocks may see.

    Args:
        places (`torch.LongTensor` of shape `(batch, tokens)`): Columns of the blocks' tokens.
        num_columns (`int`): How many columns there are.
        view ([`LayerView`]): What the layer sees.

    Returns:
        `torch.BoolTensor` of shape `(batch, 1, 1 or tokens, num_columns)`.
    """
    columns = torch.arange(num_columns, device=places.device)
    mask = (columns <= places[:, -1:])[:, None, None, :]
    if view == FULL_VIEW:
        return mask
    if view.is_anchored:
        # The first token behind the context is the anchor.
        mask = mask & (columns >= places[:, :1] - view.window)[:, None, None, :]
        view = view._replace(window=None)
    distance = (places.unsqueeze(-1) - columns).unsqueeze(1)  # [B, 1, T, columns]
    if view.is_causal:
        mask = mask & (distance >= 0)
    return mask if view.window is None else mask & (distance < view.window)
