"""Checkpoints in the layouts of others give the drafter that they were written from."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma4ForCausalLM, Gemma4TextConfig
from written_drafters import (
    HEADS,
    TAPS,
    VOCAB,
    assert_same,
    decoder_fields,
    make,
    make_target,
    speculators_config,
    write,
)

from dspark_hf import AutoDrafter, DFlashModel, DSparkModel, Eagle3Model
from dspark_hf.ops.blocks import LayerView


@pytest.fixture(scope="module")
def target():
    return make_target()


@pytest.mark.parametrize("fields", [
    {},
    {"sample_from_anchor": False},
    {"draft_vocab_size": 20},
    {"markov_head_type": "gated", "enable_confidence_head": False},
    {"markov_head_type": "rnn", "confidence_head_with_markov": False},
], ids=str)  # fmt: skip
def test_speculators_dspark(target, tmp_path, fields):
    drafter = make(target, **fields)
    own = drafter.config
    config = speculators_config(
        drafter, "dspark", block_size=5, mask_token_id=7, aux_hidden_state_layer_ids=[tap + 1 for tap in TAPS],
        sample_from_anchor=own.sample_from_anchor or None, **{name: getattr(own, name) for name in HEADS},
    )  # fmt: skip
    head = target.lm_head.weight[drafter.t2d] if "draft_vocab_size" in fields else target.lm_head.weight
    other = write(tmp_path / "a", config, drafter, **{"lm_head.weight": head.clone()})
    assert other.config.target_layer_ids == TAPS and other.config.target_name_or_path == "org/Target"
    assert other.config.sample_from_anchor == own.sample_from_anchor
    assert_same(drafter, other, target)
    # Saved by us it is the flat layout, and the same drafter still.
    other.save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["num_target_layers"] == 6
    assert_same(drafter, AutoDrafter.from_pretrained(tmp_path / "b"), target)


def test_speculators_dflash(target, tmp_path):
    drafter = make(target, DFlashModel, sample_from_anchor=False)
    config = speculators_config(drafter, "dflash", block_size=5, mask_token_id=7,
                                aux_hidden_state_layer_ids=[tap + 1 for tap in TAPS])  # fmt: skip
    assert_same(drafter, write(tmp_path, config, drafter), target)


@pytest.mark.parametrize("fields", [
    {}, {"family": "llama", "norm_before_residual": True}, {"norm_before_fc": True}
], ids=str)  # fmt: skip
def test_speculators_eagle3(target, tmp_path, fields):
    drafter = make(target, Eagle3Model, draft_vocab_size=20, own_lm_head=True, ttt_length=3, **fields)
    config = speculators_config(
        drafter, "eagle3", norm_before_residual=drafter.config.norm_before_residual,
        norm_before_fc=drafter.config.norm_before_fc,
        eagle_aux_hidden_state_layer_ids=[tap + 1 for tap in TAPS],
    )  # fmt: skip
    other = write(tmp_path, config, drafter, **{"embed_tokens.weight": target.model.embed_tokens.weight.clone()})
    assert other.embed_tokens is not None
    assert_same(drafter, other, target)


def test_eagle3_of_its_authors(target, tmp_path):
    drafter = make(target, Eagle3Model, family="llama", draft_vocab_size=20, own_lm_head=True)
    config = decoder_fields(drafter) | {
        "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 20,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": TAPS, "use_aux_hidden_state": True},
    }  # fmt: skip

    def rename(name):
        return name.replace("layers.0.", "midlayer.")

    with pytest.raises(ValueError, match="add target_layer_ids to config.json, counted from 0. Usual for a target"):
        write(tmp_path, config, drafter, rename)
    other = write(tmp_path, config | {"target_layer_ids": TAPS}, drafter, rename)
    assert_same(drafter, other, target)


@pytest.mark.parametrize("prefix", ["", "logit_head."])
@pytest.mark.parametrize("nested_heads", [True, False])
def test_specforge(target, tmp_path, prefix, nested_heads):
    drafter = make(target)
    own = drafter.config
    heads = {"markov_rank": own.markov_rank, "markov_head_type": "vanilla"}
    nested = {"projector_type": "dspark", "mask_token_id": 7, "target_layer_ids": TAPS}
    config = decoder_fields(drafter) | {
        "architectures": ["DSparkDraftModel"], "model_type": "dspark", "block_size": 5, "num_target_layers": 6,
        "auto_map": {"AutoModel": "dspark.DSparkDraftModel"}, "dflash_config": nested,
    }  # fmt: skip
    (nested if nested_heads else config).update(heads)

    def rename(name):
        return prefix + name if name.startswith(("markov_head.", "confidence_head.")) else name

    assert_same(drafter, write(tmp_path, config, drafter, rename), target)


def test_zlab_dflash(target, tmp_path):
    drafter = make(target, DFlashModel, sample_from_anchor=False, block_size=16)
    config = decoder_fields(drafter) | {
        "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16, "num_target_layers": 6,
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "dflash_config": {"target_layer_ids": TAPS, "mask_token_id": 7},
    }  # fmt: skip
    other = write(tmp_path, config, drafter)
    assert other.config.num_slots == 15 and other.config.mask_token_id == 7
    assert_same(drafter, other, target)


def test_deepspec_dflash_and_eagle3(target, tmp_path):
    copies = {"embed_tokens.weight": target.model.embed_tokens.weight, "lm_head.weight": target.lm_head.weight}
    copies = {name: tensor.detach().clone() for name, tensor in copies.items()}
    dflash = make(target, DFlashModel)
    config = decoder_fields(dflash) | {
        "architectures": ["Qwen3DSparkModel"], "block_size": 5, "mask_token_id": 7, "target_layer_ids": TAPS,
        "num_target_layers": 6, "num_anchors": 512, "markov_rank": 0, "enable_confidence_head": False,
    }  # fmt: skip
    assert_same(dflash, write(tmp_path / "dflash", config, dflash, **copies), target)
    eagle = make(target, Eagle3Model)
    config = decoder_fields(eagle) | {
        "architectures": ["Qwen3Eagle3Model"], "num_target_layers": 6, "target_model_name_or_path": "org/Target",
        "target_layer_ids": TAPS, "ttt_length": 7, "step_loss_decay": 0.8, "draft_num_hidden_layers": 1,
    }  # fmt: skip
    other = write(tmp_path / "eagle3", config, eagle, **copies)
    torch.testing.assert_close(other.base_logits(torch.eye(32)), target.lm_head(torch.eye(32)))
    assert_same(eagle, other, target)


@pytest.mark.parametrize("model_cls", [DSparkModel, DFlashModel, Eagle3Model])
def test_round_trip(target, tmp_path, model_cls):
    drafter = make(target, model_cls).to(torch.bfloat16)
    drafter.save_pretrained(tmp_path)
    assert not any(name.startswith(("lm_head", "embed")) for name in load_file(tmp_path / "model.safetensors"))
    other = AutoDrafter.from_pretrained(tmp_path)
    assert other.dtype == torch.bfloat16
    assert_same(drafter, other, target)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["Qwen3Eagle3Model" if model_cls is Eagle3Model else "Qwen3DSparkModel"]


READ = {"dflash_config": {"target_layer_ids": [1], "mask_token_id": 7}, "hidden_size": 32}
SPECULATORS = {
    "speculators_model_type": "dflash", "aux_hidden_state_layer_ids": [1], "mask_token_id": 7,
    "transformer_layer_config": {"hidden_size": 32},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"speculators_model_type": "medusa"}, "kind 'medusa', which is not read"),
        (SPECULATORS | {"projector_type": "domino"}, "kind 'domino', which is not read"),
        ({"speculators_model_type": "dflash"}, "does not say which target layers"),
        (SPECULATORS | {"aux_hidden_state_layer_ids": [0, 3]}, r"reads the target's embeddings \(layer 0 of \[0, 3\]"),
        (SPECULATORS | {"mask_token_id": None}, "which token fills its blocks; add mask_token_id"),
        (
            {
                "speculators_model_type": "eagle3",
                "eagle_aux_hidden_state_layer_ids": [1],
                "transformer_layer_config": {"hidden_size": 32},
                "fc_norm": True,
            },
            "fc_norm=True .* a variant that is not read",
        ),
        (SPECULATORS | {"target_hidden_size": 64}, "is 32 wide and its target 64"),
        ({"dflash_config": {"projector_type": "medusa"}}, "projector_type='medusa'"),
        ({"dflash_config": READ["dflash_config"] | {"projector_type": "domino"}}, "add emb_dim to its dflash_config"),
        ({"architectures": ["DFlash2DraftModel"], "target_layer_ids": [1]}, "projector_type='dflash2'"),
        ({"dflash_config": {"mask_token_id": 7}}, "add target_layer_ids to config.json"),
        ({"dflash_config": {"target_layer_ids": [1]}}, "add mask_token_id to config.json"),
        (
            READ | {"dflash_config": READ["dflash_config"] | {"input_embedding_scale": 2.5}},
            "input_embedding_scale=2.5",
        ),
        ({"target_layer_ids": [1], "block_size": 5}, "add mask_token_id"),
        ({"model_type": "deepseek_v4", "dspark_block_size": 5}, "DeepSeek-V4 target without a DSpark drafter inside"),
    ],
)
def test_what_is_not_read(target, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, config, make(target, DFlashModel))


def test_layers_of_unknown_types_are_refused(target, tmp_path):
    drafter = make(target, DFlashModel)
    config = drafter.config.to_diff_dict() | {"layer_types": ["full_attention", "linear_attention"]}
    with pytest.raises(ValueError, match=r"type \['linear_attention'\] are not supported"):
        write(tmp_path, config, drafter)


WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}


@pytest.mark.parametrize(("fields", "more"), [
    ({**WINDOW}, {}),
    ({**WINDOW, "is_causal": False}, {"sliding_window_non_causal": True}),
], ids=str)  # fmt: skip
def test_windows_of_speculators(target, tmp_path, fields, more):
    drafter = make(target, DFlashModel, sample_from_anchor=False, **fields)
    config = speculators_config(drafter, "dflash", block_size=5, mask_token_id=7, sliding_window_non_causal=False,
                                aux_hidden_state_layer_ids=[tap + 1 for tap in TAPS]) | more  # fmt: skip
    # Some writers leave this flag out, without which the window would be forgotten.
    del config["transformer_layer_config"]["use_sliding_window"]
    other = write(tmp_path / "a", config, drafter)
    assert other.config.layer_views == drafter.config.layer_views
    assert other.config.layer_views[0] == LayerView(6, "is_causal" not in fields)
    assert_same(drafter, other, target)
    other.save_pretrained(tmp_path / "b")
    again = AutoDrafter.from_pretrained(tmp_path / "b")
    assert again.config.layer_views == drafter.config.layer_views
    assert_same(drafter, again, target)


@pytest.mark.parametrize(("nested", "config", "views"), [
    ({}, WINDOW, [(6, True), (None, False)]),
    ({}, WINDOW | {"is_causal": False}, [(6, False), (None, False)]),
    ({"causal": False}, WINDOW, [(6, False), (None, False)]),
    ({"causal": True}, {}, [(None, True), (None, True)]),
    ({"causal": True}, {"is_causal": False}, [(None, False), (None, False)]),
    ({"use_swa": True, "swa_window_size": 8}, {}, [(8, False), (8, False)]),
    ({"use_swa": True, "swa_window_size": 8, "causal": True}, {}, [(8, True), (8, True)]),
    ({"swa_window_size": 9}, WINDOW, [(9, True), (None, False)]),
], ids=str)  # fmt: skip
def test_windows_of_zlab(target, tmp_path, nested, config, views):
    """As vLLM and z-lab's own code resolve them."""
    drafter = make(target, DFlashModel, sample_from_anchor=False)
    nested = {"target_layer_ids": TAPS, "mask_token_id": 7, "block_size": 5} | nested
    config = decoder_fields(drafter) | {"architectures": ["DFlashDraftModel"], "dflash_config": nested} | config
    assert write(tmp_path, config, drafter).config.layer_views == [LayerView(*view) for view in views]


def test_zlab_fields_may_lie_flat(target, tmp_path):
    drafter = make(target, DFlashModel, sample_from_anchor=False, block_size=16)
    config = decoder_fields(drafter) | {
        "architectures": ["DFlashDraftModel"], "target_layer_ids": TAPS, "mask_token_id": 7,
    }  # fmt: skip
    assert_same(drafter, write(tmp_path, config, drafter), target)


def test_a_window_smaller_than_a_block_is_refused(target, tmp_path):
    drafter = make(target, DFlashModel)
    config = drafter.config.to_diff_dict() | {"layer_types": ["sliding_attention"] * 2}
    with pytest.raises(ValueError, match=r"at least a block \(block_size=5\), got sliding_window=None"):
        write(tmp_path, config, drafter)
    with pytest.raises(ValueError, match="got sliding_window=4"):
        make(target, DFlashModel, layer_types=["sliding_attention"] * 2, sliding_window=4)


GEMMA = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True,
    hidden_size_per_layer_input=0, final_logit_softcapping=5.0, sliding_window=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def gemma_target():
    torch.manual_seed(0)
    return Gemma4ForCausalLM(Gemma4TextConfig(**GEMMA, initializer_range=0.3)).eval()


@pytest.mark.parametrize("model_type", ["gemma4_text", "gemma4_unified_text"])
def test_deepspec_gemma4(gemma_target, tmp_path, model_type):
    """config.json as DeepSpec writes it: the target's text config with the names of older transformers."""
    drafter = make(gemma_target, family="gemma4_text")
    config = GEMMA | {
        "architectures": ["Gemma4DSparkModel"], "model_type": model_type, "target_model_type": "gemma4_unified",
        "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True, "enable_moe_block": False, "tie_word_embeddings": False, "block_size": 5,
        "mask_token_id": 7, "target_layer_ids": TAPS, "num_target_layers": 6, "num_anchors": 512, "markov_rank": 8,
        "markov_head_type": "vanilla", "enable_confidence_head": True, "confidence_head_with_markov": True,
    }  # fmt: skip
    embed = gemma_target.get_input_embeddings().weight.detach().clone()
    other = write(tmp_path / "a", config, drafter, **{"embed_tokens.weight": embed, "lm_head.weight": embed.clone()})
    # Before it is bound, its copies stand in for the target's: scaled embeddings, capped logits.
    ids, hidden = torch.arange(9), torch.randn(3, 32)
    torch.testing.assert_close(other.embed(ids), drafter.embed(ids))
    torch.testing.assert_close(other.base_logits(hidden), drafter.base_logits(hidden))
    assert_same(drafter, other, gemma_target)
    other.save_pretrained(tmp_path / "b")
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert written["architectures"] == ["Gemma4DSparkModel"] and written["model_type"] == "gemma4_text"
    assert (written["global_head_dim"], written["num_global_key_value_heads"]) == (16, 1)
    for missing in ([], ["per_layer_config"], ["global_head_dim", "num_global_key_value_heads"]):
        config = {name: value for name, value in written.items() if name not in missing}
        (tmp_path / "b" / "config.json").write_text(json.dumps(config))
        assert_same(drafter, AutoDrafter.from_pretrained(tmp_path / "b"), gemma_target)


@pytest.mark.parametrize("field", [{"enable_moe_block": True}, {"hidden_size_per_layer_input": 16}], ids=str)
def test_gemma4_layers_that_no_drafter_has(gemma_target, tmp_path, field):
    drafter = make(gemma_target, family="gemma4_text")
    with pytest.raises(ValueError, match=f"neither experts nor inputs per layer, got .*{next(iter(field))}"):
        write(tmp_path, drafter.config.to_diff_dict() | field, drafter)


def test_an_eagle3_layer_of_gemma4_shape_is_refused(gemma_target):
    assert make(gemma_target, Eagle3Model).config.decoder_config.model_type == "qwen3"
    with pytest.raises(ValueError, match="EAGLE-3 drafter of 'gemma4_text' layers is not supported"):
        make(gemma_target, Eagle3Model, family="gemma4_text")
    with pytest.raises(ValueError, match="sees the whole context, got layer_types"):
        make(gemma_target, Eagle3Model, layer_types=["sliding_attention"], sliding_window=8)


def test_sharded_weights(target, tmp_path):
    drafter = make(target)
    drafter.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_same(drafter, AutoDrafter.from_pretrained(tmp_path), target)


def test_a_tap_of_the_last_layer_is_found_when_binding(target, tmp_path):
    drafter = make(target, DFlashModel, sample_from_anchor=False)
    config = speculators_config(drafter, "dflash", block_size=5, mask_token_id=7,
                                aux_hidden_state_layer_ids=[1, 3, 6])  # fmt: skip
    other = write(tmp_path, config, drafter)
    other.config.target_name_or_path = None
    with pytest.raises(ValueError, match="cannot be tapped"):
        other.bind(target)
