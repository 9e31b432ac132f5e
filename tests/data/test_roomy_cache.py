"""Text is written behind a cache with room, and is the same."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from dspark_hf.data import generating
from dspark_hf.data.generating import write_on
from dspark_hf.data.roomy_cache import RoomyLayer, roomy_cache

SHAPES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def make_target(family="llama", **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SHAPES | options))
    return AutoModelForCausalLM.from_config(config).eval()


def written(target, max_new_tokens=150):
    torch.manual_seed(1)
    rows = [torch.randint(1, 64, (length,)).tolist() for length in (9, 4)]
    return write_on(target, rows, [63], 0, do_sample=True, max_new_tokens=max_new_tokens)


def test_a_layer_holds_what_transformers_own_does():
    torch.manual_seed(0)
    ours, theirs, addresses = RoomyLayer(), DynamicLayer(), set()

    def add(num_tokens, num_rows=3):
        keys, values = torch.randn(num_rows, 2, num_tokens, 8), torch.randn(num_rows, 2, num_tokens, 4)
        got, expected = ours.update(keys, values), theirs.update(keys, values)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        addresses.add(got[0].data_ptr())

    for num_tokens in (7, *[1] * 200):
        add(num_tokens)
    assert len(addresses) < 5, "it grows now and then"
    for layer in (ours, theirs):
        layer.crop(-50)
    add(3)
    for layer in (ours, theirs):
        layer.reorder_cache(torch.tensor([2, 0, 0]))
    add(1)
    for layer in (ours, theirs):
        layer.batch_select_indices(torch.tensor([1, 2]))
    add(1, num_rows=2)
    for layer in (ours, theirs):
        layer.reset()
    assert ours.get_seq_length() == theirs.get_seq_length() == 0
    add(5)
    assert ours.get_seq_length() == 5


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("gemma3_text", {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
        ("mamba", {"state_size": 4}),
        ("minimax", {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2}),
        ("qwen3_5_text", {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_is_that_of_the_targets_own_cache(family, options, monkeypatch):
    target = make_target(family, **options)
    ours = written(target)
    monkeypatch.setattr(generating, "roomy_cache", lambda target: None)
    assert written(target) == ours


def test_layers_with_a_window_keep_their_own_kind():
    options = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    cache = roomy_cache(make_target("gemma3_text", **options))
    of_transformers = DynamicCache(config=make_target("gemma3_text", **options).config)
    assert [type(layer) for layer in cache.layers] == [type(of_transformers.layers[0]), RoomyLayer]


def test_a_target_that_was_told_its_cache_keeps_it():
    target = make_target()
    assert roomy_cache(target) is not None
    target.generation_config.cache_implementation = "static"
    assert roomy_cache(target) is None
    target.generation_config.cache_implementation, target.generation_config.use_cache = None, False
    assert roomy_cache(target) is None
    assert written(target, max_new_tokens=3)
