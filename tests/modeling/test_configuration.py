"""DSparkConfig: validation, defaults from a target, and the flat layout on disk."""

import json

import pytest
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from dspark_hf import DFlashConfig, DSparkConfig, DSparkModel, Eagle3Config
from dspark_hf.modeling.configuration.taps import spread_taps

TARGET = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4, eos_token_id=2
)


def test_taps_of_the_paper():
    assert spread_taps(36, 5) == [1, 9, 17, 25, 33]


@pytest.mark.parametrize("num_layers", range(2, 40))
@pytest.mark.parametrize("num_taps", [1, 2, 5, 9])
def test_taps_stay_below_the_last_layer(num_layers, num_taps):
    taps = spread_taps(num_layers, num_taps)
    assert taps == sorted(set(taps)) and 0 <= taps[0] and taps[-1] < num_layers - 1


def test_a_target_of_one_layer_has_nothing_to_tap():
    with pytest.raises(ValueError, match="two layers or more"):
        spread_taps(1, 3)


@pytest.mark.parametrize(
    ("target", "family", "expected"),
    [
        (TARGET, None, "llama"),
        (TARGET, "qwen3", "qwen3"),
        (Qwen3Config(num_hidden_layers=4), None, "qwen3"),
        (GPTNeoXConfig(num_hidden_layers=4), None, "qwen3"),
    ],
)
def test_family(target, family, expected):
    config = DSparkConfig.from_target(target, family=family)
    assert config.decoder_config.model_type == expected
    assert config.vocab_size == target.vocab_size and config.hidden_size == target.hidden_size


def test_fields_reach_drafter_and_decoder():
    config = DSparkConfig.from_target(TARGET, num_hidden_layers=3, intermediate_size=40, markov_rank=8, block_size=5)
    assert (config.num_hidden_layers, config.decoder_config.intermediate_size) == (3, 40)
    assert (config.markov_rank, config.num_slots, config.num_target_layers) == (8, 5, 8)
    assert config.eos_token_id == 2


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flat_layout_on_disk(tmp_path, family):
    config = DSparkConfig.from_target(TARGET, family=family, markov_rank=8, mask_token_id=5)
    config.save_pretrained(tmp_path)
    flat = json.loads((tmp_path / "config.json").read_text())
    assert flat["architectures"] == [f"{family.capitalize()}DSparkModel"] and flat["model_type"] == family
    assert flat["sample_from_anchor"] is True and flat["markov_head_type"] == "vanilla"
    assert flat["target_layer_ids"] == config.target_layer_ids and flat["hidden_size"] == 32
    assert "decoder_config" not in flat and flat["tie_word_embeddings"] is False
    # Engines read it as a plain decoder config.
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 32
    again = DSparkConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert DSparkConfig.from_dict(config.to_dict()).to_diff_dict() == config.to_diff_dict()


def test_heads_that_are_absent_are_not_written(tmp_path):
    DSparkConfig.from_target(TARGET, markov_rank=0, enable_confidence_head=False).save_pretrained(tmp_path)
    flat = json.loads((tmp_path / "config.json").read_text())
    assert "markov_head_type" not in flat and "confidence_head_with_markov" not in flat


def test_a_released_config_samples_from_the_anchor():
    flat = {"model_type": "qwen3", "target_layer_ids": [1, 3], "num_target_layers": 8, "block_size": 5}
    config = DSparkConfig.from_dict(flat)
    assert config.sample_from_anchor and config.markov_rank == 0 and not config.enable_confidence_head


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_layer_ids": [1, 7]}, "cannot be tapped"),
        ({"target_layer_ids": [3, 1]}, "ascending"),
        ({"target_layer_ids": []}, "ascending"),
        ({"target_layer_ids": [-1, 2]}, "ascending"),
        ({"block_size": 0}, "no slot"),
        ({"block_size": 1, "sample_from_anchor": False}, "no slot"),
        ({"mask_token_id": 97}, "outside the vocabulary"),
        ({"draft_vocab_size": 98}, "draft_vocab_size=98"),
        ({"markov_rank": -1}, "markov_rank"),
        ({"depth": 3}, r"Unknown drafter fields \['depth'\]"),
        ({"family": "mamba"}, "No drafter family"),
        ({"block_size": "two"}, "A drafter field cannot be used: .*'block_size' expected int, got str"),
        ({"target_layer_ids": 3}, "A drafter field cannot be used: .*'target_layer_ids' with value 3"),
        ({"markov_head_type": "lstm"}, "A drafter field cannot be used: .*'markov_head_type'"),
        ({"num_attention_heads": 3}, "num_attention_heads=3 must be a multiple of num_key_value_heads="),
        ({"num_hidden_layers": "two"}, "num_hidden_layers must be a whole number, got 'two'"),
        ({"num_taps": 2.5}, "num_taps must be a whole number, got 2.5"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        DSparkConfig.from_target(TARGET, **fields)


@pytest.mark.parametrize("target", ["me/Model", None])
def test_a_target_that_is_not_in_memory(target):
    for kind in (DSparkConfig, DSparkModel):
        with pytest.raises(ValueError, match=f"target must be a model in memory, got {target!r}: load it first"):
            kind.from_target(target)


def test_an_encoder_decoder_gets_no_drafter():
    config = T5Config(vocab_size=97, d_model=32, d_ff=48, num_layers=4, num_heads=4, d_kv=8)
    with pytest.raises(ValueError, match="needs a decoder-only target, and T5ForCond.* is an encoder-decoder"):
        DSparkModel.from_target(T5ForConditionalGeneration(config))


def test_a_drafter_of_a_config_alone():
    with pytest.raises(ValueError, match="takes the model, got its LlamaConfig. DSparkConfig.from_target makes"):
        DSparkModel.from_target(TARGET)


def test_heads_that_differ_from_layer_to_layer():
    target = AutoConfig.for_model(
        "gemma4_text", hidden_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=16
    )
    decoder = DSparkConfig.from_target(target, family="qwen3").decoder_config
    assert (decoder.num_attention_heads, decoder.num_key_value_heads, decoder.head_dim) == (4, 2, 16)


def test_gemma4_draft_layers_have_the_heads_of_full_attention():
    target = AutoConfig.for_model(
        "gemma4_text", hidden_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        global_head_dim=32, num_global_key_value_heads=1, attention_k_eq_v=True, hidden_size_per_layer_input=8,
    )  # fmt: skip
    config = DSparkConfig.from_target(target)
    assert config.decoder_config.model_type == "gemma4_text"
    heads = config.decoder_config.per_layer_config[0]
    assert (heads.head_dim, heads.num_key_value_heads) == (32, 1)
    smaller = DSparkConfig.from_target(target, head_dim=8, num_key_value_heads=4).decoder_config.per_layer_config[0]
    assert (smaller.head_dim, smaller.num_key_value_heads) == (8, 4)


@pytest.mark.parametrize("fields", [{"markov_rank": 8}, {"enable_confidence_head": True}])
def test_dflash_has_no_heads(fields):
    assert DFlashConfig.from_target(TARGET).num_slots == 7
    with pytest.raises(ValueError, match="A DFlash drafter has no heads"):
        DFlashConfig.from_target(TARGET, **fields)


LONGROPE = {"rope_type": "longrope", "rope_theta": 5e5, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64, "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 4.0}


@pytest.mark.parametrize("config_cls", [DSparkConfig, DFlashConfig, Eagle3Config])
@pytest.mark.parametrize(("target_cls", "rope"), [(Phi3Config, LONGROPE), (Qwen3Config, DYNAMIC)])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma4_text"])
def test_a_drafter_inherits_no_rope_that_depends_on_the_length(config_cls, target_cls, rope, family):
    if config_cls is Eagle3Config and family == "gemma4_text":
        pytest.skip("has no such layer")
    fields = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=None,
                  pad_token_id=0)  # fmt: skip
    original = {"original_max_position_embeddings": 64} if target_cls is Phi3Config else {}
    target = target_cls(**fields, **original, rope_parameters=rope)
    inherited = config_cls.from_target(target, family=family).decoder_config.rope_parameters
    plain = {"rope_type": "default", "rope_theta": 5e5}
    assert inherited == ({"full_attention": plain, "sliding_attention": plain} if family == "gemma4_text" else plain)


def test_rope_of_fixed_frequencies_is_inherited():
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    target = LlamaConfig(num_hidden_layers=4, rope_parameters=rope)
    assert DSparkConfig.from_target(target).decoder_config.rope_parameters == rope


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_draft_layers_that_rotate_a_part_of_each_head_are_refused(family):
    flat = DSparkConfig.from_target(TARGET, family=family).to_diff_dict()
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    for fields in ({"rope_parameters": rope}, {"partial_rotary_factor": 0.5}):
        with pytest.raises(ValueError, match="rotate whole heads, got partial_rotary_factor=0.5"):
            DSparkConfig.from_dict(flat | fields)


def test_targets_whose_configs_lack_what_a_drafter_inherits():
    """Pegasus names no beginning of text, CodeGen no padding, Mamba has no heads; RemBERT's head is wider than it."""
    for model_type in ("pegasus", "codegen", "mamba"):
        config = DSparkConfig.from_target(AutoConfig.for_model(model_type))
        assert config.decoder_config.num_attention_heads >= 1
    fields = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
              "is_decoder": True, "intermediate_size": 48, "input_embedding_size": 32,
              "output_embedding_size": 48}  # fmt: skip
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model("rembert", **fields))
    with pytest.raises(ValueError, match="output head of RemBertForCausalLM is 48 wide and its layers are 32"):
        DSparkModel.from_target(target, num_hidden_layers=1, target_layer_ids=[0])
