"""Contexts in buffers that stay where they are, with lengths in a tensor, for rounds of fixed shapes.

Shapes: H key/value heads, D head dim.
"""

import torch
from torch import Tensor

from dspark_hf.ops.blocks import FULL_VIEW, LayerView

from .masks import block_mask


class FixedLayerState:
    """One layer of a [`FixedState`], as a decoder layer takes a cache.

    Args:
        keys, values (`torch.Tensor` of shape `(rows, heads, columns, dim)`): Its buffers.
        lens (`torch.LongTensor` of shape `(rows,)`): Tokens of each row's context.
    """

    is_fixed = True

    def __init__(self, keys: Tensor, values: Tensor, lens: Tensor):
        self.keys, self.values, self.lens = keys, values, lens

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """As of [`FixedState.update`].

        Args:
            keys, values, args, kwargs: As there.
        """
        rows = torch.arange(keys.shape[0], device=keys.device).unsqueeze(1)
        columns = self.lens.unsqueeze(1) + torch.arange(keys.shape[2], device=keys.device)
        self.keys[rows, :, columns] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, columns] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys, self.values


class FixedState:
    """A context in buffers that stay where they are, with lengths in a tensor: token i of a row stands in column i.

    Nothing in it depends on what the lengths are, so a pass with it always has the same shapes.

    Args:
        key_values (`list[tuple[torch.Tensor, torch.Tensor]]`): Every layer's buffers `(rows, heads, columns, dim)`.
        first_positions (`torch.LongTensor` of shape `(rows,)`): Position of each row's first token.
        lens (`torch.LongTensor` of shape `(rows,)`, *optional*): Tokens of each row's context.
    """

    def __init__(self, key_values: list[tuple[Tensor, Tensor]], first_positions: Tensor, lens: Tensor | None = None):
        self.key_values, self.first_positions, self.lens = key_values, first_positions, lens
        self.layers = [] if lens is None else [FixedLayerState(*kv, lens) for kv in key_values]

    def at(self, lens: Tensor) -> "FixedState":
        """The same buffers with `lens` `(rows,)` tokens of each row."""
        return FixedState(self.key_values, self.first_positions, lens)

    def starts(self, device: torch.device) -> Tensor:
        """Column of each row's next token, int64 `(rows,)`; they are on the `device`."""
        return self.lens

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Positions `(rows, num_tokens)` of the next `num_tokens` tokens, on the `device`."""
        return (self.lens + self.first_positions).unsqueeze(1) + torch.arange(num_tokens, device=device)

    def block_mask(self, num_tokens: int, device: torch.device, view: LayerView = FULL_VIEW) -> Tensor:
        """Which columns a block may see.

        Args:
            num_tokens (`int`): Tokens of the block.
            device (`torch.device`): Where the mask is wanted.
            view ([`LayerView`], *optional*): As of [`DraftState.block_mask`].

        Returns:
            `torch.BoolTensor` of shape `(rows, 1, 1 or num_tokens, columns)`.
        """
        places = self.lens.unsqueeze(1) + torch.arange(num_tokens, device=device)
        return block_mask(places, self.key_values[0][0].shape[2], view)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write a layer's `keys` and `values` behind each row's context.

        Args:
            keys, values (`torch.Tensor` of shape `(rows, heads, tokens, dim)`): They.
            layer_idx (`int`): The layer.
            args, kwargs: Not read.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` of shape `(rows, heads, columns, dim)`: All columns.
        """
        return self.layers[layer_idx].update(keys, values)
