"""Keys and values of rows that grow apart: each token stays in its own column, and nothing is moved.

A row's token c stands in column c, prompt padding included, so masks and sliding windows are those of plain
`generate()`. What a row rejected is written over by its next tokens, and until then lies behind what any query sees.
Shapes: B rows, H key/value heads, C columns, D head dim, N tokens of a packed pass.
"""

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from .packing import Packing


class RowLayer(CacheLayerMixin):
    """One layer's buffers, which grow now and then; a sliding window gives up columns that no row sees any more.

    Args:
        keys (`torch.Tensor` of shape `(batch, heads, columns, dim)`): Keys of the last columns before `end`.
        values (`torch.Tensor` of shape `(batch, heads, columns, dim)`): Their values.
        end (`int`): Columns so far.
        max_columns (`int`): Most columns that can be asked for.
        sliding_window (`int`, *optional*): Columns that a token sees, itself included; all, if not given.

    Attributes:
        packing ([`Packing`]): Where the tokens of the next pass stand.
    """

    def __init__(self, keys: Tensor, values: Tensor, end: int, max_columns: int, sliding_window: int | None):
        super().__init__()
        self.keys, self.values = keys, values
        self.is_sliding, self.sliding_window = sliding_window is not None, sliding_window
        self.is_initialized = True
        self.packing: Packing | None = None
        self._max_columns = max_columns
        self._first = end - keys.shape[2]  # column that the buffers start with

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the packed `(1, heads, N, dim)` into the rows; returns all columns that the pass may see."""
        packing = self.packing
        length, first = self.get_mask_sizes(packing.num_tokens)
        self._make_room(first, length)
        # Under autocast a pass may make other dtypes than the prompt's cache has.
        if len(packing.starts) == 1:
            place = packing.starts[0] - self._first
            self.keys.narrow(2, place, packing.num_tokens).copy_(key_states)
            self.values.narrow(2, place, packing.num_tokens).copy_(value_states)
        else:
            rows, columns = packing.cells(key_states.device)
            for buffer, new in ((self.keys, key_states), (self.values, value_states)):
                buffer[rows, :, columns - self._first] = new[0].transpose(0, 1).to(buffer.dtype)
        place = first - self._first
        return self.keys.narrow(2, place, length), self.values.narrow(2, place, length)

    def _make_room(self, first: int, length: int) -> None:
        """Let the buffers reach over `length` columns from `first` on."""
        if first + length > self._first + self.keys.shape[2]:
            self.keys, self.values = (self._grow(buffer, first, length) for buffer in (self.keys, self.values))
            self._first = first

    def _grow(self, buffer: Tensor, first: int, length: int) -> Tensor:
        batch_size, num_heads, _, head_dim = buffer.shape
        # A quarter more each time keeps both the copying and the spare room small.
        num_columns = max(length, min(length + length // 4 + 16, self._max_columns - first))
        # Zeros: a masked column must not hold inf or nan, which would spoil the sum over values.
        grown = buffer.new_zeros(batch_size, num_heads, num_columns, head_dim)
        kept = buffer[:, :, first - self._first :]
        grown[:, :, : kept.shape[2]] = kept
        return grown

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns the pass may see, and the first of them."""
        first = max(0, min(self.packing.starts) - self.sliding_window + 1) if self.is_sliding else 0
        return self.packing.end - first, first

    def get_seq_length(self) -> int:
        """Tokens of the longest row before the pass."""
        return max(self.packing.starts)

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: a layer is made of the prompt's keys and values."""

    def select(self, rows: Tensor) -> None:
        """Keep these `rows` only, int64 of shape `(rows,)`."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


class RowCache(Cache):
    """Cache of packed passes, made of the one that the prompt filled, which is emptied.

    Args:
        prompt_cache (`DynamicCache`): A cache that [`is_compactable`], after the prompt.
        num_columns (`int`): Tokens of the prompt, padding included.
        max_columns (`int`): Most columns that can be asked for.
    """

    def __init__(self, prompt_cache: Cache, num_columns: int, max_columns: int):
        layers = []
        for layer in prompt_cache.layers:
            # Layers that share another's keys hold none.
            if layer.is_initialized and layer.keys is not None:
                window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
                layers.append(RowLayer(layer.keys, layer.values, num_columns, max_columns, window))
                layer.reset()
            else:
                layers.append(layer)
        super().__init__(layers=layers)
        self._row_layers = [layer for layer in layers if isinstance(layer, RowLayer)]

    def begin(self, packing: Packing) -> None:
        """Expect a pass over these tokens, laid out by a `packing`."""
        for layer in self._row_layers:
            layer.packing = packing

    def select(self, rows: list[int]) -> None:
        """Keep these `rows` only, numbers from 0, in this order."""
        for layer in self._row_layers:
            layer.select(torch.tensor(rows, device=layer.keys.device))
