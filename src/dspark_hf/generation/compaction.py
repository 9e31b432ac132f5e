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
    """Whether [`compact`] knows every layer of a cache; others may hold more than keys and values."""
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
    placed: dict[tuple, tuple[Tensor | None, Tensor]] = {}
    for layer in cache.layers:
        # Layers that share another's keys hold none.
        if not layer.is_initialized or layer.keys is None:
            continue
        is_sliding = isinstance(layer, DynamicSlidingWindowLayer)
        num_kept = min(width, layer.sliding_window - 1) if is_sliding else width
        key = (layer.keys.device, layer.keys.shape[2], num_kept)
        if key not in placed:
            placed[key] = _places(*key, cuts, rows)
        layer.keys = _take(layer.keys, *placed[key])
        layer.values = _take(layer.values, *placed[key])
        if is_sliding:
            layer.cumulative_length = width


def _places(
    device: torch.device, num_columns: int, num_kept: int, cuts: list[int], rows: list[int] | None
) -> tuple[Tensor | None, Tensor]:
    """Rows that stay, and the old column of each new one, `(batch, num_kept)`."""
    last = torch.arange(num_columns - num_kept, num_columns, device=device)
    # Columns before a row's first token are masked, so it does not matter what they hold.
    columns = (last - torch.tensor(cuts, device=device).unsqueeze(1)).clamp_min_(0)
    return None if rows is None else torch.tensor(rows, device=device), columns


def _take(states: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    if rows is not None:
        states = states.index_select(0, rows)
    index = columns[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)  # [B, H, C, D]
