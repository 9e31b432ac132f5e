"""Whatever a file says, a message stays short."""

import pytest
from transformers import AutoModelForCausalLM

from dspark_hf import DSparkModel
from dspark_hf.messages import cut, shown


def test_values_are_cut():
    assert shown("org/Model") == "'org/Model'" and cut("x" * 80) == "x" * 80
    assert shown("x" * 10**6) == "'" + "x" * 79 + "..." and cut("x" * 81) == "x" * 80 + "..."
    assert len(shown([{"a": 1}] * 10**5)) == 83
    assert shown(10**5000) == "(int too large to write)"


def test_a_long_name_of_a_target_is_cut(tiny_target_dir):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    drafter.config.target_name_or_path, drafter.config.target_fingerprint = "org/" + "x" * 10**5, "0" * 16
    with pytest.raises(ValueError, match=r"made for org/x{76}\.\.\., and .* is another model") as caught:
        drafter.bind(target)
    assert len(str(caught.value)) < 800
