"""Compressed tokens: whatever is rejected, the cache is that of the tokens that stand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_targets import make_prompt, make_target
from transformers import DynamicCache

from dspark_hf.generation.rollback.compressed_cache import is_compressed, make_rewindable, make_stock

LAYERS = ["compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"]
FIELDS = {"num_hidden_layers": 3, "layer_types": LAYERS, "mlp_layer_types": ["moe"] * 3}


def process(target, ids, cache):
    positions = torch.arange(ids.shape[1]).unsqueeze(0) + cache.get_seq_length()
    with torch.no_grad():
        return target(ids, position_ids=positions, past_key_values=cache).logits


def contents(cache):
    found = {}
    for index, layer in enumerate(cache.layers):
        for name, value in vars(layer).items():
            for key, part in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(part, (torch.Tensor, int)):
                    found[f"{index} {type(layer).__name__}.{name} {key}"] = part
    return found


@pytest.fixture(scope="module")
def target():
    return make_target("deepseek_v4", **FIELDS)


@settings(max_examples=15)
@given(
    prompt_len=st.integers(1, 20),
    passes=st.lists(st.integers(1, 18).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=5),
)
def test_rejected_tokens_leave_no_trace(target, prompt_len, passes):
    cache = DynamicCache(config=target.config)
    kept = make_prompt(prompt_len)
    process(target, kept, cache)
    for layer in cache.layers:
        if is_compressed(layer):
            make_rewindable(layer)
        else:
            layer.activate_past_recording()
    for index, (num_tokens, num_rejected) in enumerate(passes):
        ids = make_prompt(num_tokens, seed=index)
        process(target, ids, cache)
        cache.crop(-num_rejected)
        kept = torch.cat([kept, ids[:, : num_tokens - num_rejected]], 1)
    for layer in cache.layers:
        make_stock(layer)
        layer.record_past = False
    expected = DynamicCache(config=target.config)
    process(target, kept, expected)
    following = make_prompt(1, seed=99)
    logits = process(target, following, cache)
    torch.testing.assert_close(logits, process(target, following, expected), atol=1e-3, rtol=1e-3)
    ours, plain = contents(cache), contents(expected)
    assert ours.keys() == plain.keys()
    for name, part in plain.items():
        torch.testing.assert_close(ours[name], part, atol=1e-3, rtol=1e-3)


def test_layers_are_stock_afterwards(target):
    cache = DynamicCache(config=target.config)
    classes = [type(layer) for layer in cache.layers]
    attributes = [set(vars(layer)) for layer in cache.layers]
    for layer in cache.layers[:2]:
        make_rewindable(layer)
        make_rewindable(layer)
    assert [type(layer) for layer in cache.layers][:2] != classes[:2]
    for layer in cache.layers:
        make_stock(layer)
    assert [type(layer) for layer in cache.layers] == classes
    assert [set(vars(layer)) for layer in cache.layers] == attributes
    # transformers builds its caches of the same classes as before.
    again = DynamicCache(config=target.config)
    assert [type(layer) for layer in again.layers] == classes
