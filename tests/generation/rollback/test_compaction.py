"""Rows of a cache are cut to their own lengths."""

import pytest
import torch
from transformers import DynamicCache, QuantizedCache
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from dspark_hf.generation.rollback.compaction import compact, is_compactable


def make_cache(num_columns, window=None):
    """Keys that tell row and column: `100 * row + column`; values are their negatives."""
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicLayer()] if window is None else [DynamicSlidingWindowLayer(window)]
    cache.activate_past_recording()
    keys = (100.0 * torch.arange(3)[:, None] + torch.arange(num_columns))[:, None, :, None].expand(-1, 2, -1, 4)
    for layer in cache.layers:
        layer.update(keys, -keys)
    return cache


def columns_of(cache):
    layer = cache.layers[-1]
    assert (layer.values == -layer.keys).all() and (layer.keys == layer.keys[:, :1, :, :1]).all()
    return layer.keys[:, 0, :, 0].tolist()


def test_rows_end_at_the_right():
    cache = make_cache(6)
    compact(cache, [2, 0, 1], width=6)
    assert columns_of(cache) == [
        [0, 0, 0, 1, 2, 3],
        [100, 101, 102, 103, 104, 105],
        [200, 200, 201, 202, 203, 204],
    ]
    assert cache.get_seq_length() == 6


def test_what_no_row_needs_is_dropped():
    cache = make_cache(6)
    compact(cache, [3, 2, 3], width=4)
    assert columns_of(cache) == [[0, 0, 1, 2], [100, 101, 102, 103], [200, 200, 201, 202]]


def test_rows_leave():
    cache = make_cache(6)
    compact(cache, [1, 3], width=5, rows=[2, 0])
    assert columns_of(cache) == [[200, 201, 202, 203, 204], [0, 0, 0, 1, 2]]


@pytest.mark.parametrize("width", [3, 10])
def test_sliding_windows_keep_what_they_need(width):
    cache = make_cache(width + 2, window=5)
    compact(cache, [2, 0, 1], width=width + 2)
    kept = min(width + 2, 4)
    expected = [[100 * row + max(0, width + 2 - cut - back) for back in range(kept, 0, -1)]
                for row, cut in ((0, 2), (1, 0), (2, 1))]  # fmt: skip
    assert columns_of(cache) == expected and cache.get_seq_length() == width + 2
    # As after crop(): the next pass sees a window of its own.
    assert cache.layers[0].get_mask_sizes(1) == (kept + 1, width + 2 - kept)


def test_caches_that_hold_more_are_left_alone():
    assert is_compactable(make_cache(2)) and is_compactable(make_cache(2, window=4))
    other = make_cache(2)
    other.layers.append(DynamicIndexedLayer())
    assert not is_compactable(other)
    assert not is_compactable(object.__new__(QuantizedCache))
    offloaded = make_cache(2)
    offloaded.offloading = True
    assert not is_compactable(offloaded)
