"""Taps of a target, its last layer's raw output among them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_target import make_target
from transformers import AutoModelForCausalLM

from dspark_hf.data.features import TargetFeatures
from dspark_hf.modeling.taps import Taps

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
    with taps.in_pass():
        outputs = target(ids, output_hidden_states=taps.entries)
    middle, last = taps.read(outputs.hidden_states)
    assert torch.equal(middle, outputs.hidden_states[3])
    torch.testing.assert_close(target.lm_head(target.model.norm(last)), outputs.logits)


def test_a_last_layer_that_cannot_be_found_is_told():
    target = make_target()
    target.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="reads the last of 3 layers .* does not keep its layers in one list"):
        Taps(target, [0, 2])
