"""A cache that slides where masks do not: a block would see more than single tokens."""

import pytest
from tiny_targets import TINY, make_prompt, make_target
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from dspark_hf import DSparkModel, PromptLookup
from dspark_hf.generation.target.own_inputs import unmasked_window

FIELDS = {"target_layer_ids": [0, 2], "num_hidden_layers": 1, "block_size": 4, "markov_rank": 4}


def test_moshi():
    fields = TINY | {"num_key_value_heads": 4, "ffn_dim": 48, "sliding_window": 8}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["moshi"](**fields)).eval()
    drafter, ids = DSparkModel.from_target(model, **FIELDS), make_prompt(14)
    message = "slides by 8 tokens, and its masks do not"
    with pytest.raises(ValueError, match=message):
        model.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=drafter)
    with pytest.raises(ValueError, match=message):
        model.generate_batch(ids.tolist(), max_new_tokens=12, assistant_model=drafter)


@pytest.mark.parametrize("field", ["attention_chunk_size", "sliding_window"])
def test_a_llama_with_a_field_of_others(field):
    """transformers makes its cache by the field, and its masks without."""
    model = make_target("llama", **{field: 8})
    with pytest.raises(ValueError, match="slides by 8 tokens, and its masks do not"):
        model.generate(make_prompt(14), max_new_tokens=12, do_sample=False, assistant_model=PromptLookup())


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_oss", "llama4_text"])
def test_masks_that_slide_along(family):
    fields = {"sliding_window": 8, "num_local_experts": 4} if family == "gpt_oss" else {}
    assert unmasked_window(make_target(family, **fields)) is None
