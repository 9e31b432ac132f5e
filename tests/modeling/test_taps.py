"""Taps of a target, by hooks and by hidden states, its last layer's raw output among them."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from generation.tiny_targets import FAMILIES, MORE_FAMILIES, make_prompt
from generation.tiny_targets import make_target as make_tiny
from safetensors.torch import load_file
from small_target import make_target
from transformers import AutoModelForCausalLM

from dspark_hf import DSparkModel
from dspark_hf.data.features import TargetFeatures
from dspark_hf.modeling.taps import Taps, merge_streams, stacks_streams

FOLDER = Path(__file__).parents[1] / "golden" / "v4_dspark"


def hooks(model):
    return [len(module._forward_hooks) for module in model.modules()]


def test_the_last_layer_is_read_as_the_mean_of_its_raw_streams_and_nothing_is_left_behind():
    target = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    expected, fields = load_file(FOLDER / "target.safetensors"), target.config.to_dict()
    target(expected["input_ids"], output_hidden_states=True)  # transformers leaves hooks of its own
    before = hooks(target)
    features, last = TargetFeatures(target, [0, 1, 2])(expected["input_ids"])
    torch.testing.assert_close(features, expected["features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target.lm_head(last), expected["logits"], rtol=1e-4, atol=1e-4)
    assert hooks(target) == before and target.config.to_dict() == fields


def test_the_hook_goes_when_a_pass_fails():
    target = make_target()
    before, taps = hooks(target), Taps(target, [5])
    with pytest.raises(RuntimeError, match="stopped"), taps.in_pass():
        raise RuntimeError("stopped")
    assert hooks(target) == before


def test_a_last_layer_without_streams_is_read_before_the_norm():
    target = make_target()
    taps, ids = Taps(target, [2, 5]), torch.tensor([[1, 2, 3]])
    with taps.in_pass() as seen:
        outputs = target(ids, output_hidden_states=True)
    middle, last = taps.read(seen, outputs.hidden_states)
    assert torch.equal(middle, outputs.hidden_states[3])
    torch.testing.assert_close(target.lm_head(target.model.norm(last)), outputs.logits)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES, "deepseek_v4", "bamba", "lfm2", "qwen3_next"])
def test_hooks_read_what_hidden_states_would_hold(family):
    target, ids = make_tiny(family, **MORE_FAMILIES.get(family, {})), make_prompt(9, batch_size=2)
    taps, before = Taps(target, [2, 0]), hooks(target)
    with taps.in_pass() as seen:
        outputs = target(ids, output_hidden_states=False, logits_to_keep=1)
    read = taps.read(seen, outputs.hidden_states)
    assert taps.entries == [] and hooks(target) == before
    states = target(ids, output_hidden_states=True).hidden_states
    assert all(map(torch.equal, read, (merge_streams(states[entry], stacks_streams(target)) for entry in (3, 1))))


@pytest.mark.parametrize("family", ["bloom", "gemma3n_text", "gemma4_text", "olmo_hybrid", "openai-gpt"])
def test_what_is_not_plain_is_asked_for(family):
    target, ids = make_tiny(family), make_prompt(9)
    taps = Taps(target, [0, 2])
    assert taps.entries == [1, 3]
    with taps.in_pass() as seen:
        outputs = target(ids, output_hidden_states=taps.entries)
    states = target(ids, output_hidden_states=True).hidden_states
    states = [merge_streams(states[entry], stacks_streams(target)) for entry in (1, 3)]
    assert all(map(torch.equal, taps.read(seen, outputs.hidden_states), states))


def test_a_compiled_target_is_asked():
    target = make_target()
    target.model.layers[1].forward = torch.compile(target.model.layers[1].forward, backend="eager")
    assert Taps(target, [0, 2]).entries == [1, 3]


def test_generating_leaves_a_target_without_hooks():
    target = make_tiny()
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    target.generate(make_prompt(5), assistant_model=drafter, max_new_tokens=8)
    assert drafter.last_stats.rounds > 0 and not any(hooks(target))


def test_layers_that_run_twice_are_read_the_first_time_but_the_last():
    target = make_target()
    taps = Taps(target, [2, 5])
    with taps.in_pass() as seen:
        hidden = torch.randn(1, 3, target.config.hidden_size)
        tables = target.model.rotary_emb(hidden, torch.arange(3)[None])
        passes = [[layer(hidden + add, position_embeddings=tables) for layer in target.model.layers] for add in (0, 1)]
    middle, last = taps.read(seen, None)
    assert torch.equal(middle, passes[0][2]) and torch.equal(last, passes[1][5])


@pytest.mark.parametrize("where", [0, 3])
def test_a_pass_within_a_pass_is_not_read(where):
    target, ids = make_target(), torch.tensor([[1, 2, 3]])
    expected = TargetFeatures(target, [2, 5])(ids)[0]
    is_within = []

    def other_pass(layer, inputs):
        if not is_within:
            is_within.append(True)
            target(ids + 1)

    target.model.layers[where].register_forward_pre_hook(other_pass)
    assert torch.equal(TargetFeatures(target, [2, 5])(ids)[0], expected) and is_within


def test_passes_of_two_threads_are_told_apart():
    target = make_target()
    features, prompts = TargetFeatures(target, [2, 5]), [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6]])]
    expected = [features(ids)[0] for ids in prompts]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda index: features(prompts[index % 2])[0], range(60)))
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(one, expected[index % 2]) for index, one in enumerate(found))


def test_layers_may_be_replaced():
    target, ids = make_target(), torch.tensor([[1, 2, 3]])
    features = TargetFeatures(target, [2])
    expected = features(ids)[0]
    target.model.layers[2] = copy.deepcopy(target.model.layers[2])
    assert torch.equal(features(ids)[0], expected)
    target.model.layers = copy.deepcopy(target.model.layers)
    assert torch.equal(features(ids)[0], expected)


def test_a_layer_that_does_not_run_is_told():
    target, ids = make_target(), torch.tensor([[1, 2, 3]])
    taps = Taps(target, [2])
    with taps.in_pass() as seen:
        pass
    with pytest.raises(ValueError, match="LlamaForCausalLM returns no hidden states"):
        taps.read(seen, target(ids, output_hidden_states=True).hidden_states)


def test_a_last_layer_that_cannot_be_found_is_told():
    target = make_target()
    target.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="reads the last of 3 layers .* does not keep its layers in one list"):
        Taps(target, [0, 2])
