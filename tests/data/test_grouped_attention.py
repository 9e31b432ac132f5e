"""Text is written with attention that repeats no keys, and is the same."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dspark_hf.data import grouped_attention as module
from dspark_hf.data.generating import write_on
from dspark_hf.data.grouped_attention import grouped_attention


def make_target(family="llama"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def others(monkeypatch):
    """Tokens a row of each attention that is left to transformers."""
    seen, sdpa = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(layer, query, *args, **kwargs):
        seen.append(query.shape[2])
        return sdpa(layer, query, *args, **kwargs)

    monkeypatch.setattr(module, "ALL_ATTENTION_FUNCTIONS", {"sdpa": attend})
    return seen


def written(target, lengths=(9, 4)):
    torch.manual_seed(1)
    rows = [torch.randint(1, 64, (length,)).tolist() for length in lengths]
    return write_on(target, rows, [63], 0, do_sample=False, max_new_tokens=12)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "olmo3"])
def test_text_is_that_of_the_targets_own_attention(family, others, monkeypatch):
    target = make_target(family)
    ours = written(target)
    assert others == [9, 9] and target.config._attn_implementation == "sdpa", "layers of the prompt's pass"
    monkeypatch.setattr(module, "_BASE", "none")
    assert written(target) == ours and len(others) == 2


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_other_attention_stays(attention):
    target = make_target()
    target.config._attn_implementation = attention
    with grouped_attention(target):
        assert target.config._attn_implementation == attention


def test_an_error_inside_leaves_the_config_as_it_was():
    target = make_target()
    with pytest.raises(KeyError), grouped_attention(target):
        assert target.config._attn_implementation != "sdpa"
        raise KeyError
    assert target.config._attn_implementation == "sdpa"


def test_masks_of_each_head_are_the_targets_own_business(others):
    query, key = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 5, 8)
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = 2, False
    mask, repeated = torch.randn(2, 4, 1, 5), key.repeat_interleave(2, 1)
    for used, num_others in ((mask, 1), (mask[:, :1], 1), (None, 1)):
        out, _ = module._attention(layer, query, key, key, used)
        expected = (query @ repeated.mT * 8**-0.5 + (0 if used is None else used)).softmax(-1) @ repeated
        torch.testing.assert_close(out, expected.transpose(1, 2))
        assert len(others) == num_others
