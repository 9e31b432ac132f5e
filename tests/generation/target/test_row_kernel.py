"""Packed rounds whose attention is a kernel: exact, and only where a mask says what the kernel can do."""

import pytest
import torch
from fake_drafters import greedy_oracle
from tiny_targets import MORE_FAMILIES, make_prompt, make_target
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from dspark_hf import SpeculationConfig
from dspark_hf.generation.target import row_attention as packed
from dspark_hf.generation.target.packing import Packing
from dspark_hf.generation.target.row_attention import view_of
from dspark_hf.ops.blocks import LayerView
from dspark_hf.ops.row_attention import row_attention


@pytest.fixture
def views(kernels, monkeypatch):
    """What the kernel was told that queries see, call by call."""
    seen = []

    def note(*args, **kwargs):
        seen.append(args[4])
        return row_attention(*args, **kwargs)

    monkeypatch.setattr(packed, "row_attention", note)
    return seen


def generated(target, side, lengths):
    """What a target generates in ragged rounds, and without a drafter."""
    width, columns = max(lengths), torch.arange(max(lengths))
    held = torch.tensor(lengths).unsqueeze(1)
    mask = columns >= width - held if side == "left" else columns < held
    ids = make_prompt(width, batch_size=len(lengths)) * mask
    drafter, plain = greedy_oracle(
        target, ids, [0, 4, 2, 1, 3], 8, attention_mask=mask.long(), uneven=True, enable_confidence_head=True
    )
    out = target.generate(
        ids, attention_mask=mask.long(), assistant_model=drafter, max_new_tokens=8, do_sample=False,
        speculation=SpeculationConfig(confidence_threshold=0.5),
    )  # fmt: skip
    assert len(set(drafter.last_stats.verified_lens)) > 1
    return out.tolist(), plain.tolist()


FULL, WINDOW = LayerView(is_causal=True), LayerView(8, is_causal=True)


@pytest.mark.parametrize(
    ("family", "side", "kinds"),
    [
        ("mistral", "right", {WINDOW}),
        ("gemma3_text", "left", {FULL, WINDOW}),
        pytest.param("llama", "left", {FULL}, marks=pytest.mark.slow),
        pytest.param("qwen3", "right", {FULL}, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "left", {FULL}, marks=pytest.mark.slow),
    ],
)
def test_ragged_rounds_are_exact(family, side, kinds, views):
    types = ["sliding_attention", "full_attention"] * 2
    fields = {"layer_types": types} if family == "gemma3_text" else MORE_FAMILIES.get(family, {})
    target = make_target(family, **fields)
    out, plain = generated(target, side, (5, 14, 2))
    assert out == plain
    # Every layer of every round.
    num_layers = target.config.num_hidden_layers
    assert (
        set(views) == kinds
        and len(views) % num_layers == 0
        and views == views[:num_layers] * (len(views) // num_layers)
    )


def test_soft_caps_stay_with_the_targets_own_attention(views):
    out, plain = generated(make_target("gemma2", **MORE_FAMILIES["gemma2"]), "left", (5, 9))
    assert out == plain and not views


def test_without_kernels_nothing_is_asked_of_them(target, monkeypatch):
    monkeypatch.setattr(packed, "row_attention", None)
    out, plain = generated(target, "left", (5, 9))
    assert out == plain


PASS = Packing([3, 20, 0], [4, 2, 1])


@pytest.mark.parametrize(
    ("function", "window", "view"),
    [
        (causal_mask_function, None, LayerView(is_causal=True)),
        (sliding_window_causal_mask_function(5), 5, LayerView(5, is_causal=True)),
        (sliding_window_causal_mask_function(50), 50, LayerView(50, is_causal=True)),
        (sliding_window_causal_mask_function(5), 6, None),
        (sliding_window_causal_mask_function(6), 5, None),
        (chunked_causal_mask_function(5, torch.zeros(3, dtype=int)), 5, None),
        (and_masks(causal_mask_function, lambda row, head, query, key: key != 2), None, None),
        (lambda row, head, query, key: key >= query - 4, 5, None),
    ],
)
def test_masks_in_words(function, window, view):
    assert view_of(function, window, PASS) == view


def test_masks_that_read_another_device_are_not_put_in_words():
    def function(row, head, query, key):
        return torch.zeros(3, device="meta") + key > 0

    assert view_of(function, 5, PASS) is None
