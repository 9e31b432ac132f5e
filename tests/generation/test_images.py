"""Text after an image: targets made of an image encoder and a language model."""

import pytest
import torch
from fake_drafters import OneHotOracle, OracleDrafter, TableDrafter
from tiny_vlms import FAMILIES, SPECIAL, join_rows, make_image_prompt, make_vlm
from transformers import DynamicCache

from dspark_hf import DSparkModel
from dspark_hf.modeling.cache_name import CACHE_NAME

CORE = ("qwen2_vl", "gemma3")
TARGETS = [name if name in CORE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module", params=TARGETS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def target(family):
    return make_vlm(family)


def generate(target, inputs, **kwargs):
    # Targets that write image tokens of their own are asked for the images.
    return target.generate(
        **inputs, **{"max_new_tokens": 25, "do_sample": False, "suppress_tokens": SPECIAL, **kwargs}
    )


@pytest.mark.parametrize("num_images", [1, 2])
def test_greedy(family, target, num_images):
    inputs = make_image_prompt(family, num_images=num_images)
    plain = generate(target, inputs)
    other_image = {**inputs, "pixel_values": -4 * inputs["pixel_values"]}
    assert generate(target, other_image).tolist() != plain.tolist()
    drafter = OracleDrafter(plain.tolist(), range(5), 64)
    assert generate(target, inputs, assistant_model=drafter).tolist() == plain.tolist()
    assert drafter.anchors_were_right and drafter.last_stats.tau > 2
    if family == "paligemma":
        return  # its prompt is read in both directions, so one pass over prompt and answer is something else
    with torch.no_grad():
        more = plain.shape[1] - inputs["input_ids"].shape[1]
        whole = {**inputs, "input_ids": plain, "attention_mask": torch.ones_like(plain)}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                whole[name] = torch.nn.functional.pad(inputs[name], (0, more))
        states = target(**whole, output_hidden_states=True).hidden_states
    features = torch.cat(drafter.state.features[0])
    expected = torch.cat([states[1], states[3]], -1)[0, : features.shape[0]]
    torch.testing.assert_close(features, expected, atol=2e-2, rtol=1e-3)


def test_real_drafter(family, target):
    """It is made for the language model, and bound to the whole."""
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    assert drafter.config.hidden_size == 32 and drafter.is_bound_to(target)
    inputs = make_image_prompt(family)
    plain = generate(target, inputs)
    assert generate(target, inputs, assistant_model=drafter).tolist() == plain.tolist()
    text = {name: inputs[name][:, :4] for name in ("input_ids", "attention_mask")}
    assert generate(target, text, assistant_model=drafter).tolist() == generate(target, text).tolist()


def test_rows_with_different_images(family, target):
    rows = [make_image_prompt(family, 5, 6, seed=1), make_image_prompt(family, 2, 1, seed=2)]
    inputs = join_rows([*rows, make_image_prompt(family, 9, 4, seed=3)])
    plain = generate(target, inputs)
    starts = (inputs["attention_mask"] == 0).sum(1).tolist()
    known = [row[start:] for row, start in zip(plain.tolist(), starts, strict=True)]
    drafter = OracleDrafter(known, (4, 1, 0, 3), 64, uneven=True)
    assert generate(target, inputs, assistant_model=drafter).tolist() == plain.tolist()
    assert drafter.anchors_were_right
    # Rotary frequencies of an image encoder keep no row back; a recurrent state does.
    assert (len(set(drafter.last_stats.emitted_lens[:3])) > 1) == (family != "qwen3_5")
    eos = int(plain[0, -15])
    expected = generate(target, inputs, eos_token_id=eos)
    assert generate(target, inputs, assistant_model=TableDrafter(64), eos_token_id=eos).tolist() == expected.tolist()


def test_sampling_and_several_sequences(family, target):
    inputs = make_image_prompt(family)
    length = inputs["input_ids"].shape[1]
    drafter = OneHotOracle(generate(target, inputs).tolist() * 2, (4, 1), 64)
    kwargs = {"return_dict_in_generate": True, "output_logits": True, "num_return_sequences": 2, "max_new_tokens": 9}
    out = generate(target, inputs, assistant_model=drafter, do_sample=True, **kwargs)
    assert out.sequences.shape == (2, length + 9)
    for row in range(2):
        forced = out.sequences[row, length:].tolist()
        expected = generate(
            target,
            inputs,
            return_dict_in_generate=True,
            output_logits=True,
            max_new_tokens=9,
            prefix_allowed_tokens_fn=lambda _, ids, forced=forced: [forced[len(ids) - length]],
        )
        ours = torch.stack([logits[row] for logits in out.logits])
        torch.testing.assert_close(ours, torch.cat(expected.logits), atol=1e-2, rtol=1e-3)


def test_a_later_turn_asks_about_the_image(family, target):
    """The image is in the cache; the turn has text only."""
    inputs = make_image_prompt(family)
    drafter = TableDrafter(64)
    caches = [DynamicCache(config=target.config) for _ in range(2)]
    first = generate(target, inputs, **{CACHE_NAME: caches[0]})
    assert generate(target, inputs, **{CACHE_NAME: caches[1]}, assistant_model=drafter).tolist() == first.tolist()
    ids = torch.cat([first, torch.tensor([[7, 8, 9]])], 1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain = generate(target, turn, **{CACHE_NAME: caches[0]})
    out = generate(target, turn, **{CACHE_NAME: caches[1]}, assistant_model=drafter)
    assert out.tolist() == plain.tolist()
    assert drafter.state.context_lens[0] > first.shape[1]
