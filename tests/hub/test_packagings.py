"""A drafter comes back from every packaging as it went in, bit for bit; public drafters' configs are understood."""

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
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

from dspark_hf import AutoDrafter, Calibration, DFlashModel, DSparkModel, Eagle3Model
from dspark_hf.hub.packagings import PACKAGINGS, write_packaging
from dspark_hf.hub.packagings.interleaved import sort_pairs
from dspark_hf.ops.blocks import LayerView
from dspark_hf.publishing.engines import ENGINES, Checkpoint

WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}


@pytest.fixture(scope="module")
def target():
    return make_target()


def assert_bit_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)


@pytest.mark.parametrize(
    ("model_cls", "fields"),
    [
        (DSparkModel, {}),
        (DSparkModel, {"sample_from_anchor": False, "markov_head_type": "gated", "num_anchors": 99}),
        (DSparkModel, {"markov_head_type": "rnn", "confidence_head_with_markov": False}),
        (DSparkModel, {"enable_confidence_head": False, **WINDOW}),
        (DSparkModel, {**WINDOW, "is_causal": False}),
        (DSparkModel, {"is_causal": True}),
        (DSparkModel, {"own_lm_head": True}),
        (DFlashModel, {"own_lm_head": True, "sample_from_anchor": False, "draft_vocab_size": 20}),
        (DFlashModel, {"sample_from_anchor": False}),
        (DFlashModel, {"sample_from_anchor": False, "layer_types": ["sliding_attention"] * 2, "sliding_window": 6}),
        (DFlashModel, {"sample_from_anchor": False, **WINDOW, "is_causal": False}),
        (Eagle3Model, {"norm_before_residual": True, "own_lm_head": True, "ttt_length": 4}),
        (Eagle3Model, {"family": "llama", "norm_before_fc": True, "own_embed_tokens": True, "step_loss_decay": 0.9}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back(target, tmp_path, model_cls, fields, dtype):
    drafter = make(target, model_cls, **fields).to(dtype)
    drafter.save_pretrained(tmp_path / "flat")
    there = AutoDrafter.from_pretrained(tmp_path / "flat")
    there.config.target_name_or_path = "org/Target"
    there.calibration = Calibration([2.0] * there.config.num_slots)
    write_packaging(there, tmp_path / "speculators", "speculators")
    back = AutoDrafter.from_pretrained(tmp_path / "speculators")
    assert back.calibration.temperatures == there.calibration.temperatures
    assert_bit_equal(back.state_dict(), there.state_dict())
    write_packaging(back, tmp_path / "again", "flat")
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("flat", "again"))
    assert second == first | {"target_name_or_path": "org/Target"}
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("flat", "speculators", "again")]
    assert_bit_equal(tensors[0], tensors[1])
    assert_bit_equal(tensors[0], tensors[2])
    for name in ("flat", "speculators", "again"):
        assert len({path.stat().st_mode for path in (tmp_path / name).iterdir()}) == 1, "as open as any new file"
    if model_cls is not Eagle3Model:
        assert back.config.layer_views == drafter.config.layer_views
        problems = ENGINES["speculators"].problems(Checkpoint.read(tmp_path / "speculators"))
        assert bool(problems) == (fields == {"is_causal": True})
    is_plain = fields.get("markov_head_type", "vanilla") == "vanilla"
    assert bool(ENGINES["vllm"].problems(Checkpoint.read(tmp_path / "speculators"))) != is_plain


DOMINO = {"markov_head_type": "domino", "markov_rank": 6, "gru_hidden_dim": 10, "enable_confidence_head": False}


@pytest.mark.parametrize(
    ("model_cls", "fields"),
    [
        (DSparkModel, {}),
        (DSparkModel, {"sample_from_anchor": False, "markov_head_type": "gated", "enable_confidence_head": False}),
        (DFlashModel, {"sample_from_anchor": False, **WINDOW, "is_causal": False}),
        (DSparkModel, DOMINO),
        (DSparkModel, {**DOMINO, "sample_from_anchor": False, "pure_draft_prefix_len": 0}),
    ],
    ids=str,
)
def test_to_specforge_and_back(target, tmp_path, model_cls, fields):
    drafter = make(target, model_cls, **fields)
    drafter.save_pretrained(tmp_path / "flat")
    write_packaging(drafter, tmp_path / "specforge", "specforge")
    back = AutoDrafter.from_pretrained(tmp_path / "specforge")
    assert_bit_equal(back.state_dict(), drafter.state_dict())
    back.save_pretrained(tmp_path / "again")
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("flat", "again"))
    assert first == second
    is_served = "pure_draft_prefix_len" not in fields
    assert (ENGINES["sglang"].problems(Checkpoint.read(tmp_path / "specforge")) == []) == is_served
    with (
        pytest.raises(ValueError, match="has no place for a domino drafter")
        if "markov_rank" in fields
        else nullcontext()
    ):
        write_packaging(drafter, tmp_path / "speculators", "speculators")


@pytest.mark.parametrize("model_cls", [DSparkModel, DFlashModel, Eagle3Model])
def test_a_reduced_vocabulary_is_served(target, tmp_path, model_cls):
    fields = {"sample_from_anchor": False} if model_cls is DFlashModel else {}
    drafter = make(target, model_cls, draft_vocab_size=20, **fields)
    drafter.config.target_name_or_path = "org/Target"
    drafter.save_pretrained(tmp_path / "flat")
    if model_cls is not Eagle3Model:
        (problem,) = ENGINES["vllm"].problems(Checkpoint.read(tmp_path / "flat"))
        assert "--format speculators" in problem
    write_packaging(drafter, tmp_path / "served", "speculators")
    held = load_file(tmp_path / "served" / "model.safetensors")
    tokens = list(range(1, 60, 3))
    assert torch.equal(held["lm_head.weight"], target.lm_head.weight[tokens])
    assert (held["d2t"] + torch.arange(20)).tolist() == tokens
    for name in ("vllm", "speculators"):
        assert ENGINES[name].problems(Checkpoint.read(tmp_path / "served")) == []
    other = AutoDrafter.from_pretrained(tmp_path / "served")
    assert not other.config.own_lm_head, "the rows are the target's still"
    assert_bit_equal(other.state_dict(), AutoDrafter.from_pretrained(tmp_path / "flat").state_dict())
    other.config.target_fingerprint = None
    assert_same(drafter, other, target)


def test_a_reduced_vocabulary_wants_its_target(target, tmp_path):
    make(target, draft_vocab_size=20).save_pretrained(tmp_path / "flat")
    with pytest.raises(ValueError, match="bind it to its target first"):
        write_packaging(AutoDrafter.from_pretrained(tmp_path / "flat"), tmp_path / "out", "speculators")
    drafter = make(target, draft_vocab_size=20)
    target.lm_head.bias = torch.nn.Parameter(torch.ones(VOCAB))
    try:
        with pytest.raises(ValueError, match="output head has a bias"):
            write_packaging(drafter, tmp_path / "out", "speculators")
    finally:
        target.lm_head.bias = None
    assert not (tmp_path / "out" / "config.json").exists()


def test_what_a_packaging_has_no_place_for(target, tmp_path):
    with pytest.raises(ValueError, match="dspark drafters of qwen3 layers, got llama. Save it in the flat"):
        write_packaging(make(target, family="llama"), tmp_path, "speculators")
    with pytest.raises(ValueError, match="not written in the packaging midlayer; write the flat layout"):
        write_packaging(make(target), tmp_path, "midlayer")
    with pytest.raises(ValueError, match="all tokens and the target's output head; got dspark of qwen3 .*size=20"):
        write_packaging(make(target, draft_vocab_size=20), tmp_path, "specforge")
    with pytest.raises(ValueError, match="the anchor of a DFlash drafter does not draft, and here it does"):
        write_packaging(make(target, DFlashModel), tmp_path, "specforge")
    with pytest.raises(ValueError, match="no packaging called 'zip'; known are v4, speculators, midlayer, specforge"):
        write_packaging(make(target), tmp_path, "zip")
    assert len({packaging.name for packaging in PACKAGINGS}) == len(PACKAGINGS)


@pytest.mark.parametrize(("flag", "num_tokens", "anchor_drafts"), [
    (None, 5, True), (None, 4, False), (None, None, False), (True, 4, True), (False, 5, False),
])  # fmt: skip
def test_whether_the_anchor_drafts(target, tmp_path, flag, num_tokens, anchor_drafts):
    """The flag says so, and without one the proposal's length against the block's."""
    drafter = make(target)
    config = speculators_config(
        drafter, "dspark", block_size=5, mask_token_id=7, aux_hidden_state_layer_ids=[tap + 1 for tap in TAPS],
        sample_from_anchor=flag, **{name: getattr(drafter.config, name) for name in HEADS},
    )  # fmt: skip
    config["speculators_config"]["proposal_methods"] = [{"proposal_type": "greedy", "speculative_tokens": num_tokens}]
    assert write(tmp_path, config, drafter).config.sample_from_anchor == anchor_drafts


def interleave(drafter):
    """The drafter's weights as they are where rope turns neighbouring entries: the inverse of sort_pairs."""
    order = torch.arange(drafter.config.decoder_config.head_dim).view(2, -1).T.flatten()
    for layer in drafter.layers:
        for name in ("q_proj", "k_proj"):
            weight = getattr(layer.self_attn, name).weight
            weight.data = weight.view(-1, len(order), weight.shape[1])[:, order].flatten(0, 1).clone()
        for name in ("q_norm", "k_norm"):
            weight = getattr(layer.self_attn, name).weight
            weight.data = weight.data[order].clone()


def test_neighbouring_pairs_are_sorted(target):
    """q k under interleaved rope is q k of the sorted entries under the usual one."""
    drafter = make(target)
    attention = drafter.layers[0].self_attn
    dim, hidden = attention.head_dim, torch.randn(2, 32)
    for norm in (attention.q_norm, attention.k_norm):
        torch.nn.init.normal_(norm.weight)
    angles = torch.outer(torch.tensor([3.0, 11.0]), 10000 ** (-torch.arange(0, dim, 2) / dim))  # [2, D/2]

    def score(turn):
        query = attention.q_norm(attention.q_proj(hidden[:1]).view(-1, dim))[0]
        key = attention.k_norm(attention.k_proj(hidden[1:]).view(-1, dim))[0]
        return turn(query, angles[0]) @ turn(key, angles[1])

    def neighbours(entries, angle):
        pairs = torch.view_as_complex(entries.view(-1, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()

    def halves(entries, angle):
        first, second = entries.chunk(2)
        turned = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
        return torch.cat(turned)

    with torch.no_grad():
        expected = score(neighbours)
        sort_pairs(drafter)
        torch.testing.assert_close(score(halves), expected)


def test_liquid(target, tmp_path):
    """LiquidAI/LFM2.5-1.2B-Instruct-DSpark and its kin: taps, mask and the target's layers are nested alone, nothing
    names the projector, rope turns neighbours."""
    drafter = make(target)
    for layer in drafter.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            torch.nn.init.normal_(norm.weight)
    released = make(target)
    released.load_state_dict(drafter.state_dict())
    interleave(released)
    config = decoder_fields(drafter) | {
        "architectures": ["Lfm2DSparkDraftModel"], "model_type": "qwen3", "block_size": 5, "markov_rank": 8,
        "markov_head_type": "vanilla", "enable_confidence_head": True, "rope_is_neox_style": False,
        "dflash_config": {"mask_token_id": 7, "target_layer_ids": TAPS, "num_target_layers": 6},
    }  # fmt: skip
    other = write(tmp_path / "a", config, released)
    assert other.config.num_slots == 5 and other.config.num_target_layers == 6
    assert_same(drafter, other, target)
    assert_bit_equal(other.state_dict(), drafter.state_dict())
    # What is written is the usual order, which every engine has.
    other.save_pretrained(tmp_path / "b")
    assert "neox" not in (tmp_path / "b" / "config.json").read_text()
    assert_same(drafter, AutoDrafter.from_pretrained(tmp_path / "b"), target)


def test_openbmb(target, tmp_path):
    """openbmb/MiniCPM5-2B-DSpark: flat, with a projector's name, code that is not there, and the whole vocabulary."""
    drafter = make(target)
    extra = {"projector_type": "dspark", "draft_vocab_size": VOCAB, "auto_map": {"AutoModel": "x.DSparkDraftModel"}}
    other = write(tmp_path, drafter.config.to_diff_dict() | extra, drafter)
    assert not other.has_reduced_vocabulary
    assert_same(drafter, other, target)


def test_radixark(target, tmp_path):
    """RadixArk/Qwen3.8-27B-DSpark: SpecForge's packaging, and yarn of the drafter's own, from the first token on."""
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 32.0, "original_max_position_embeddings": 64,
            "beta_fast": 32.0, "beta_slow": 1.0}  # fmt: skip
    drafter = make(target, rope_parameters=yarn)
    assert drafter.rotary_emb.attention_scaling > 1.3
    nested = {"projector_type": "dspark", "mask_token_id": 7, "target_layer_ids": TAPS, "attention_mode": "gqa",
              "markov_rank": 8, "markov_head_type": "vanilla", "enable_confidence_head": True,
              "confidence_head_with_markov": True, "confidence_head_alpha": 1.0}  # fmt: skip
    config = decoder_fields(drafter) | {"architectures": ["DSparkDraftModel"], "model_type": "qwen3", "block_size": 5}
    other = write(tmp_path, config | {"dflash_config": nested}, drafter)
    assert other.config.num_slots == 5 and other.rotary_emb.attention_scaling > 1.3
    assert_same(drafter, other, target)


@pytest.mark.parametrize(("fields", "num_tokens", "flag"), [
    ({"draft_vocab_size": 20, "sample_from_anchor": False}, 4, None),  # makora-ai/gemma4-26b-a4b-dspark
    ({}, 5, None),  # RedHatAI/Qwen3.6-35B-A3B-speculator.dspark
    ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 6}, 5, True),  # RedHatAI/Qwen3.8-27B
], ids=str)  # fmt: skip
def test_redhat_and_makora(target, tmp_path, fields, num_tokens, flag):
    drafter = make(target, **fields)
    config = speculators_config(
        drafter, "dspark", block_size=5, mask_token_id=7, aux_hidden_state_layer_ids=[tap + 1 for tap in TAPS],
        sample_from_anchor=flag, auto_map={"AutoConfig": "config.DSparkSpeculatorConfig"},
        **{name: getattr(drafter.config, name) for name in HEADS},
    )  # fmt: skip
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == num_tokens
    other = write(tmp_path, config, drafter)
    assert other.config.layer_views[0] == LayerView(fields.get("sliding_window"), "layer_types" in fields)
    assert_same(drafter, other, target)


@pytest.mark.parametrize(("fields", "message"), [
    # nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4-DSpark
    ({"attention_sink_bias": True, "sample_from_anchor": False,
      "dflash_config": {"causal": True, "use_swa": True, "swa_window_size": 1024}}, "attention_sink_bias=True"),
    ({"enable_qwen35_gated_q_proj": True}, "enable_qwen35_gated_q_proj=True"),  # in layers that have no gate
    ({"model_type": "minimax_m3"}, "No drafter family is called 'minimax_m3'"),
    ({"log_snr_conditioning": True}, "log_snr_conditioning=True"),
    # satgeze/Qwen3.6-27B-DSpark: copied from its target's config, and not what the drafter does.
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
     "DeepSpec's copy it from their target's config and rotate whole heads"),
], ids=str)  # fmt: skip
def test_what_is_not_read_of_public_drafters(target, tmp_path, fields, message):
    drafter = make(target)
    with pytest.raises(ValueError, match=message):
        write(tmp_path, drafter.config.to_diff_dict() | fields, drafter)


def test_ornith(target, tmp_path):
    """stanleyphoong/Ornith-1.0-9B-DSpark: Qwen3.5's gated attention, of which a quarter of each head is rotated."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    drafter = make(target, family="qwen3_5_text", rope_parameters=rope)
    assert drafter.layers[0].self_attn.q_proj.out_features == 2 * 32
    assert drafter.rotary_emb.inv_freq.shape == (drafter.config.decoder_config.head_dim // 4,)
    config = drafter.config.to_diff_dict()
    assert config["architectures"] == ["Qwen35DSparkModel"]
    config |= {"model_type": "qwen3_5", "enable_qwen35_gated_q_proj": True, "attn_output_gate": True}
    assert_same(drafter, write(tmp_path, config, drafter), target)


@pytest.mark.parametrize("prefix", ["", "logit_head.", "midlayer."])
def test_a_converted_drafter_is_saved_by_flat_names(target, tmp_path, prefix):
    if prefix == "midlayer.":
        drafter = make(target, Eagle3Model, family="llama", own_lm_head=True)
        config = decoder_fields(drafter) | {"target_layer_ids": TAPS}
        names = {name: name.replace("layers.0.", prefix) for name in drafter.state_dict()}
    else:
        drafter = make(target)
        config = decoder_fields(drafter) | {
            "architectures": ["DSparkDraftModel"], "block_size": 5, "num_target_layers": 6,
            "dflash_config": {"mask_token_id": 7, "target_layer_ids": TAPS, "markov_rank": 8},
        }  # fmt: skip
        names = {name: prefix + name if "_head." in name else name for name in drafter.state_dict()}
    write(tmp_path / "a", config, drafter, names.get).save_pretrained(tmp_path / "b")
    assert_bit_equal(load_file(tmp_path / "b" / "model.safetensors"), dict(drafter.state_dict()))
