"""Cache layers of DeepSeek-V4, which compress every few tokens into one entry.

Tokens wait in a buffer until a window of them is full. An entry is a function of the tokens of its window and, where
windows overlap, the one before; so after a rejection the entries of windows that are still full stand, and the buffer
is what follows them. Rewindable layers keep the latest pass's inputs for that.
Shapes: B batch, C columns, T buffered and new tokens, w windows, r tokens of a window, D head dim.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

_LAYER_TYPES = ("heavily_compressed_attention", "compressed_sparse_attention")


def is_compressed(layer: object) -> bool:
    """Whether a cache's `layer` is one of DeepSeek-V4's that compress tokens."""
    return any(getattr(cls, "_layer_type", None) in _LAYER_TYPES for cls in type(layer).__mro__)


def make_rewindable(layer: Any) -> None:
    """Let a `layer` that [`is_compressed`] be cropped, until [`make_stock`]."""
    if not isinstance(layer, RewindableLayer):
        layer.__class__ = _rewindable_class(type(layer))
        layer.forget_pass()


def make_stock(layer: Any) -> None:
    """Undo [`make_rewindable`] of a `layer`."""
    if isinstance(layer, RewindableLayer):
        layer.__class__ = type(layer).__bases__[1]
        for name in RewindableLayer.notes:
            delattr(layer, name)


@cache
def _rewindable_class(layer_cls: type) -> type:
    # Classes with a layer type replace transformers' own of that type.
    return type(f"Rewindable{layer_cls.__name__}", (RewindableLayer, layer_cls), {"_layer_type": None})


class RewindableLayer(DynamicSlidingWindowLayer):
    """What is put before a compressing layer's class. Each pass is followed by a call of [`crop`]."""

    notes = ("_columns", "_inputs", "_overlaps", "_windows")

    def forget_pass(self) -> None:
        """Drop what was noted of the latest pass."""
        self._columns: Tensor | None = None  # [B, 1, C, D], those that the window is to drop included
        self._inputs: dict[str, tuple] = {}
        self._overlaps: dict[str, tuple] = {}
        self._windows: dict[str, tuple] = {}

    def update(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append keys and values as the class behind does, and note those that its window is about to drop."""
        keys, values = super().update(*args, **kwargs)
        self._columns = keys
        return keys, values

    def store_compression_weights(self, name: str, kv: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, int]:
        """Take in weights as the class behind does, and note what there was before.

        Args:
            name (`str`): Which compressor they are of.
            kv, gate (`torch.Tensor` of shape `(batch, tokens, width)`): Projections of the new tokens.
        """
        self._inputs[name] = (self.buffer_kv[name], self.buffer_gate[name], kv, gate, self.entry_count[name])
        return super().store_compression_weights(name, kv, gate)

    def update_overlap_state(self, name: str, chunk_kv: Tensor, chunk_gate: Tensor, head_dim: int) -> tuple:
        """Take in a window as the class behind does, and note what there was before.

        Args:
            name (`str`): Which compressor it is of.
            chunk_kv, chunk_gate (`torch.Tensor` of shape `(batch, windows, ratio, 2 * head_dim)`): Projections.
            head_dim (`int`): Width of a head.
        """
        self._overlaps[name] = (self.overlap_kv[name], self.overlap_gate[name])
        self._windows[name] = (chunk_kv[..., :head_dim], chunk_gate[..., :head_dim])  # [B, w, r, D]
        return super().update_overlap_state(name, chunk_kv, chunk_gate, head_dim)

    def crop(self, tokens_to_remove: int) -> None:
        num_removed = abs(tokens_to_remove)
        if num_removed > 0:
            end = self._columns.shape[2] - num_removed
            self.keys = self._columns[:, :, max(end - self.sliding_window + 1, 0) : end]
            self.values = self.keys
            self.cumulative_length -= num_removed
            for name in self._inputs:
                self._crop_entries(name, num_removed)
        self.forget_pass()

    def _crop_entries(self, name: str, num_removed: int) -> None:
        old_kv, old_gate, kv, gate, num_old_entries = self._inputs[name]
        if old_kv is not None:
            kv, gate = torch.cat([old_kv, kv], 1), torch.cat([old_gate, gate], 1)  # [B, T, D]
        num_kept = kv.shape[1] - num_removed
        num_windows = num_kept // self.compress_rate
        waiting = slice(num_windows * self.compress_rate, num_kept)
        self.buffer_kv[name], self.buffer_gate[name] = kv[:, waiting], gate[:, waiting]
        self.entry_count[name] = num_old_entries + num_windows
        self.compressed_kv[name] = self.compressed_kv[name][:, : self.entry_count[name]]
        if name in self._windows:
            if num_windows == 0:
                overlap = self._overlaps[name]
            else:
                overlap = (states[:, num_windows - 1].clone() for states in self._windows[name])
            self.overlap_kv[name], self.overlap_gate[name] = overlap
