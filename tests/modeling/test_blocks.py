"""Blocks of every family and attention type against the plain formulas, in training and in cached rounds."""

import copy
from functools import partial

import pytest
import torch
from naive_drafters import naive_block
from small_target import VOCAB, make_target
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from dspark_hf import DSparkModel
from dspark_hf.modeling import block_attention
from dspark_hf.ops.blocks import LayerView, training_mask
from dspark_hf.ops.row_attention import row_attention

TAPS, LENGTH, BLOCK = [0, 2], 21, 4
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def make_gemma(seed=0, **fields):
    torch.manual_seed(seed)
    config = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True,
        hidden_size_per_layer_input=0, sliding_window=8, initializer_range=0.3, final_logit_softcapping=5.0,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    return Gemma4ForCausalLM(Gemma4TextConfig(**{**config, **fields})).eval()


def make_drafter(target, **fields):
    torch.manual_seed(1)
    defaults = dict(num_hidden_layers=2, block_size=BLOCK, markov_rank=8, target_layer_ids=TAPS, initializer_range=0.3)
    drafter = DSparkModel.from_target(target, **{**defaults, **fields}).eval()
    for name, parameter in drafter.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    for name, buffer in drafter.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.7)
    return drafter


SLIDING, MIXED = ["sliding_attention"] * 2, ["sliding_attention", "full_attention"]
CASES = {
    "llama": (make_target, {}),
    "qwen3": (make_target, {"family": "qwen3"}),
    "qwen3-window": (make_target, {"family": "qwen3", "layer_types": SLIDING, "sliding_window": 6}),
    "qwen3-window-of-a-block": (make_target, {"family": "qwen3", "layer_types": SLIDING, "sliding_window": BLOCK}),
    "qwen3-wide-window": (make_target, {"family": "qwen3", "layer_types": SLIDING, "sliding_window": 99}),
    "qwen3-open-window": (
        make_target, {"family": "qwen3", "layer_types": SLIDING, "sliding_window": 6, "is_causal": False}
    ),
    "qwen3-mixed": (make_target, {"family": "qwen3", "layer_types": MIXED, "sliding_window": 5}),
    "gemma4": (make_gemma, {}),
    "gemma4-values": (lambda: make_gemma(attention_k_eq_v=False), {}),
    "gemma4-mixed": (make_gemma, {"layer_types": MIXED, "sliding_window": 5}),
    "gemma4-open": (make_gemma, {"layer_types": MIXED, "sliding_window": 5, "is_causal": False}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """A drafter, features of two texts, their tokens, and what one block's hidden states should be."""
    make, fields = CASES[request.param]
    drafter = make_drafter(make(), **fields)
    torch.manual_seed(2)
    features, ids = torch.randn(2, LENGTH, 64), torch.randint(VOCAB, (2, LENGTH))
    window, sees_ahead = fields.get("sliding_window"), fields.get("is_causal") is False

    def expected(row, anchor):
        with torch.no_grad():
            return naive_block(drafter, features[row], anchor, ids[row, anchor], window, sees_ahead)

    return drafter, features, ids, expected


def test_training(case):
    drafter, features, ids, expected = case
    anchors = torch.tensor([[1, 4, 14], [0, 7, 12]])
    with torch.no_grad():
        hidden = drafter(ids, features, anchors, torch.ones(2, 3, dtype=torch.bool)).hidden
    for row in range(2):
        for index, anchor in enumerate(anchors[row].tolist()):
            torch.testing.assert_close(hidden[row, index], expected(row, anchor), **CLOSE)


def check_rounds(case, lengths):
    """Two rounds on a growing context, of rows that are equally long, or not, with leftovers of rejected tokens."""
    drafter, features, ids, expected = case
    state = drafter.start(2)
    drafter.extend(state, features[:, : max(lengths)], lengths)
    for step in range(2):
        ends = [length + 3 * step for length in lengths]
        anchor_ids = torch.stack([ids[row, end] for row, end in enumerate(ends)])
        hidden = drafter.block_hidden(state, anchor_ids)[0]
        for row, end in enumerate(ends):
            torch.testing.assert_close(hidden[row], expected(row, end), **CLOSE)
        more = torch.stack([features[row, end : end + 4] for row, end in enumerate(ends)])
        drafter.extend(state, more)
        state.crop([end + 3 for end in ends])


@pytest.mark.parametrize("lengths", [(5, 5), (2, 9), (1, 14)])
def test_cached_rounds(case, lengths):
    check_rounds(case, lengths)


def test_cached_rounds_through_the_kernel(case, kernels, monkeypatch):
    seen = []
    monkeypatch.setattr(block_attention, "row_attention", lambda *a, **k: seen.append(0) or row_attention(*a, **k))
    check_rounds(case, (2, 9))
    drafter = case[0]
    assert len(seen) == 2 * len(drafter.layers)
    assert drafter.config.decoder_config._attn_implementation == "sdpa"


def test_other_threads_keep_their_masks(kernels):
    """A pass that meets the function under its name, but none of ours, is torch's."""
    drafter = make_drafter(make_target())
    states = drafter.start(2), drafter.start(2)
    for state in states:
        drafter.extend(state, torch.ones(2, 9, 64), [3, 9])
    anchor_ids = torch.tensor([1, 2])
    expected = drafter.block_hidden(states[0], anchor_ids)[0]
    drafter.config.decoder_config._attn_implementation = "dspark_block"
    mask_of = partial(states[1].block_mask, BLOCK, anchor_ids.device)
    with torch.no_grad():
        positions = states[1].positions(BLOCK, anchor_ids.device)
        hidden = drafter.norm(drafter._decode(drafter._embed_blocks(anchor_ids), positions, states[1], mask_of))
    torch.testing.assert_close(hidden, expected, **CLOSE)


def test_eager_attention_takes_the_same_masks(case):
    drafter, features, ids, expected = case
    eager = copy.deepcopy(drafter)
    eager.config.decoder_config._attn_implementation = "eager"
    state = eager.start(1)
    eager.extend(state, features[:1, :9])
    torch.testing.assert_close(eager.block_hidden(state, ids[:1, 9])[0][0], expected(0, 9), **CLOSE)


def test_the_embedding_of_its_own_is_scaled_like_the_targets():
    target = make_gemma()
    drafter = DSparkModel(make_drafter(target).config, own_embeddings=True)
    drafter.embed_tokens.weight.data.copy_(target.get_input_embeddings().weight)
    ids = torch.arange(5)
    own = drafter.embed(ids)
    torch.testing.assert_close(own, target.get_input_embeddings()(ids))
    assert torch.equal(drafter.bind(target).embed(ids), own)


def test_training_mask_of_a_causal_layer():
    mask = training_mask(torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool), 3, 3, LayerView(None, True))[0, 0]
    assert mask.int().tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1]]
