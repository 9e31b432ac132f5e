"""Rows of a key/value cache that keep different numbers of tokens, without holes between them.

transformers' caches count one length for all rows, and sliding windows count columns, so what a row rejected cannot
stay behind as a masked hole. Instead each row is moved to the right until all rows end at the last column; what stands
left of a row's first token is masked. Rotary positions are part of the keys, so moving them changes nothing.
Shapes: B batch, H key/value heads, C cached columns, D head dim.
"""

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer


def is_compactable(cache: Cache) -> bool:
    """Whether [`compact`] knows every layer of a `cache`; others may hold more than keys and values."""
    known = (DummyLayer, DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and not cache.offloading and all(type(layer) in known for layer in cache.layers)


def compact(cache: Cache, cuts: list[int], width: int, rows: list[int] | None = None) -> None:
    """Take the last tokens out of each row, and line the rows up at the right again.

    Args:
        cache (`Cache`): A cache that [`is_compactable`], changed in place. Where it slides, it holds what the window
            of a row's last kept token needs, as after `activate_past_recording()`.
        cuts (`list[int]`): Tokens to take out, of each row that stays.
        width (`int`): Tokens of the longest row afterwards.
        rows (`list[int]`, *optional*): Rows that stay, in order; all, if not given.
    """
    places: dict[tuple, Tensor] = {}
    for layer in cache.layers:
        # Layers that share another's keys hold none.
        if not layer.is_initialized or layer.keys is None:
            continue
        is_sliding = isinstance(layer, DynamicSlidingWindowLayer)
        num_kept = min(width, layer.sliding_window - 1) if is_sliding else width
        for name in ("keys", "values"):
            states = getattr(layer, name)
            key = (states.device, states.shape[:3], num_kept)
            if key not in places:
                places[key] = _places(*key, cuts, rows)
            setattr(layer, name, _take(states, places[key]))
        if is_sliding:
            layer.cumulative_length = width


def cut_back(cache: Cache, num_columns: int) -> bool:
    """Keep the first columns only, though a pass was interrupted, so that layers hold different numbers of them.

    Args:
        cache (`Cache`): The cache, changed in place.
        num_columns (`int`): Columns to keep; before the pass there were no more.

    Returns:
        `bool`: False where that cannot be done: layers hold more than keys and values, or a window has moved on.
    """
    if not is_compactable(cache):
        return False
    layers = [layer for layer in cache.layers if layer.is_initialized]
    if any(layer.is_sliding and not layer.record_past for layer in layers):
        return False
    for layer in layers:
        num_kept = min(num_columns, layer.sliding_window - 1) if layer.is_sliding else num_columns
        layer.keys, layer.values = layer.keys[:, :, :num_kept], layer.values[:, :, :num_kept]
        if layer.is_sliding:
            layer.cumulative_length = num_columns
    return True


def _places(device: torch.device, shape: torch.Size, num_kept: int, cuts: list[int], rows: list[int] | None) -> Tensor:
    """Where each kept vector stands, `(rows, heads, num_kept)`, counting through batch, heads and columns."""
    batch_size, num_heads, num_columns = shape
    last = torch.arange(num_columns - num_kept, num_columns, device=device)
    # Columns before a row's first token are masked, so it does not matter what they hold.
    columns = (last - torch.tensor(cuts, device=device).unsqueeze(1)).clamp_min_(0)  # [B, C]
    old_rows = torch.arange(batch_size, device=device) if rows is None else torch.tensor(rows, device=device)
    heads = old_rows.unsqueeze(1) * num_heads + torch.arange(num_heads, device=device)  # [B, H]
    return heads.unsqueeze(2) * num_columns + columns.unsqueeze(1)


def _take(states: Tensor, places: Tensor) -> Tensor:
    # On a CPU twelve times as fast as gather(), which looks every number up on its own.
    kept = states.reshape(-1, states.shape[3]).index_select(0, places.flatten())
    return kept.view(*places.shape, -1)  # [B, H, C, D]
