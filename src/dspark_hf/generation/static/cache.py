"""Keys and values of the target in fixed buffers, as its layers take a cache."""

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class FixedLayer(CacheLayerMixin):
    """One layer's buffers, as a pass of a bucket sees them.

    Args:
        keys, values (`torch.Tensor` of shape `(rows, heads, columns, dim)`): Views of the buffers.
        sliding_window (`int`, *optional*): Columns that a token sees, itself included; all, if not given. The mask
            keeps to it, and no column is given up.
    """

    is_compileable = is_fixed = True

    def __init__(self, keys: Tensor, values: Tensor, sliding_window: int | None):
        super().__init__()
        self.keys, self.values = keys, values
        self.is_sliding, self.sliding_window = sliding_window is not None, sliding_window
        self.is_initialized = True
        self.cells: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write `(rows, heads, w, dim)` into the columns of the pass; returns all columns."""
        rows, columns = self.cells
        # Under autocast a pass may make other dtypes than the prompt's cache has.
        self.keys[rows, :, columns] = key_states.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, columns] = value_states.transpose(1, 2).to(self.values.dtype)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns there are, and the first of them."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Not 0: what is behind a prompt is no prompt. Lengths are in tensors."""
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers are there."""


class FixedCache(Cache):
    """Layers over fixed buffers; what shares another layer's keys has none of its own."""

    def begin(self, columns: Tensor) -> None:
        """Expect a pass whose tokens stand in these `columns`, int64 `(rows, w)`."""
        cells = torch.arange(columns.shape[0], device=columns.device).unsqueeze(1), columns
        for layer in self.layers:
            if isinstance(layer, FixedLayer):
                layer.cells = cells
