"""Engines' own readers on what is written here, where they import on a CPU (`make engines` fetches them)."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dspark_hf import AutoDrafter, DFlashModel, DSparkModel, Eagle3Model
from dspark_hf.hub.packagings import write_packaging
from dspark_hf.publishing.engines import ENGINES, Checkpoint

READERS = Path(os.environ.get("DSPARK_ENGINES", "absent"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not READERS.is_dir(), reason="DSPARK_ENGINES names no folder with engines' readers"),
]
VLLM = READERS / "vllm" / "transformers_utils" / "configs" / "speculators" / "algos.py"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("target")
    config = LlamaConfig(vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=6,
                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def written(target, folder, model_cls=DSparkModel, **fields):
    """A drafter, and a folder with it in speculators' packaging."""
    own = {"target_layer_ids": [0, 2, 4], "family": "qwen3", "num_hidden_layers": 1} | fields
    if model_cls is DSparkModel:
        own = {"markov_rank": 8} | own
    drafter = model_cls.from_target(target, **own)
    drafter.config.target_name_or_path = target.name_or_path
    write_packaging(drafter, folder, "speculators")
    return drafter


@pytest.mark.parametrize("fields", [
    {}, {"sample_from_anchor": False}, {"draft_vocab_size": 40}, {"markov_head_type": "gated"},
    {"markov_head_type": "rnn", "confidence_head_with_markov": False}, {"enable_confidence_head": False},
    {"layer_types": ["sliding_attention"], "sliding_window": 8},
], ids=str)  # fmt: skip
def test_speculators_loads_dspark(target, tmp_path, fields):
    drafter = written(target, tmp_path, **fields)
    assert ENGINES["speculators"].problems(Checkpoint.read(tmp_path)) == []
    sys.path.append(str(READERS))
    try:
        from speculators.models.dspark import DSparkDraftModel
    finally:
        sys.path.remove(str(READERS))
    other, report = DSparkDraftModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert {name for name in report["missing_keys"] if not name.startswith(("verifier_", "embed_tokens"))} <= (
        set() if "draft_vocab_size" in fields else {"lm_head.weight", "t2d", "d2t"}
    )
    theirs = other.state_dict()
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(theirs[name], tensor), name
    config = other.config
    assert config.aux_hidden_state_layer_ids == [1, 3, 5] and config.block_size == drafter.config.block_size
    assert config.sample_from_anchor == drafter.config.sample_from_anchor
    if "draft_vocab_size" in fields:
        assert torch.equal(theirs["lm_head.weight"], target.lm_head.weight[:40])
    # What it saves comes back to us.
    other.save_pretrained(tmp_path / "again")
    back = AutoDrafter.from_pretrained(tmp_path / "again")
    assert all(torch.equal(tensor, drafter.state_dict()[name]) for name, tensor in back.state_dict().items()
               if name in drafter.state_dict())  # fmt: skip
    assert back.config.num_slots == drafter.config.num_slots
    assert back.config.layer_views == drafter.config.layer_views


@pytest.mark.skipif(not VLLM.is_file(), reason="vLLM was not fetched")
@pytest.mark.parametrize(("model_cls", "fields"), [
    (DSparkModel, {}), (DSparkModel, {"sample_from_anchor": False, "draft_vocab_size": 40}),
    (DFlashModel, {"sample_from_anchor": False}), (Eagle3Model, {"own_lm_head": True}),
], ids=str)  # fmt: skip
def test_vllm_understands_the_config(target, tmp_path, model_cls, fields):
    drafter = written(target, tmp_path, model_cls, **fields)
    assert ENGINES["vllm"].problems(Checkpoint.read(tmp_path)) == []
    config = json.loads((tmp_path / "config.json").read_text())
    update = runpy.run_path(str(VLLM))["SUPPORTED_SPECULATORS_TYPES"][config["speculators_model_type"]]
    flat = dict(config["transformer_layer_config"])
    update(config_dict=config, pre_trained_config=flat)
    names = {DSparkModel: "Qwen3DSparkModel", DFlashModel: "DFlashDraftModel", Eagle3Model: "Eagle3Qwen3ForCausalLM"}
    assert flat["architectures"] == [names[model_cls]] and flat["eagle_aux_hidden_state_layer_ids"] == [1, 3, 5]
    assert flat["draft_vocab_size"] == fields.get("draft_vocab_size", 260)
    if model_cls is DSparkModel:
        assert flat["target_layer_ids"] == [0, 2, 4] and flat["mask_token_id"] == drafter.config.mask_token_id
        assert flat["sample_from_anchor"] == drafter.config.sample_from_anchor
        assert (flat["markov_rank"], flat["block_size"]) == (8, drafter.config.block_size)
        assert flat["confidence_head_with_markov"] is True
    elif model_cls is DFlashModel:
        nested = {"mask_token_id": drafter.config.mask_token_id, "target_layer_ids": [0, 2, 4]}
        assert flat["dflash_config"] == nested | {"sample_from_anchor": False, "causal": False}
    else:
        assert flat["norm_before_residual"] is False and flat["norm_before_fc"] is False
