"""Folders of drafters and adapters from others: broken fields, sizes and indexes end in an error that names them."""

import copy
import json
import os

import pytest
import torch
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from dspark_hf import AutoDrafter, DFlashConfig, DSparkModel, Eagle3Model
from dspark_hf.publishing.folder import DrafterFolder


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0, got 0"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_attention_heads=3 must be a multiple"),
        ({"hidden_size": -16}, "hidden_size must be a whole number above 0, got -16"),
        ({"head_dim": True}, "head_dim must be a whole number"),
        ({"intermediate_size": 1e300}, "intermediate_size must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 1000"),
        ({"block_size": "7"}, "block_size"),
        ({"block_size": 513}, "block_size=513 proposes more tokens than there are positions"),
        ({"block_size": 10**6}, "block_size=1000000 proposes more than 1024 tokens"),
        ({"block_size": 1025, "max_position_embeddings": 10**7}, "block_size=1025 proposes more than 1024 tokens"),
        ({"block_size": 2**70}, "block_size must be at most 2147483647"),
        ({"model_type": ["x"]}, "model_type must be text"),
        ({"model_type": "x"}, "No drafter family is called 'x'"),
        ({"architectures": 7}, "config.json: architectures must be a list"),
        ({"hidden_act": "x"}, "hidden_act must name an activation"),
        ({"dtype": "x"}, "dtype in config.json is no torch dtype, got 'x'"),
        ({"dflash_config": "x"}, "dflash_config must be fields"),
        ({"target_layer_ids": "ab"}, "target_layer_ids must be a list of layers"),
        ({"target_layer_ids": [[1]]}, "target_layer_ids must be a list of layers"),
        (
            {"speculators_model_type": "dspark", "aux_hidden_state_layer_ids": [1], "transformer_layer_config": [1]},
            "transformer_layer_config must be fields",
        ),
        ({"speculators_model_type": "dspark", "aux_hidden_state_layer_ids": [1]}, "transformer_layer_config"),
        (
            {"speculators_model_type": "dspark", "aux_hidden_state_layer_ids": [1], "transformer_layer_config": {}},
            "transformer_layer_config of config.json is missing or empty",
        ),
        (
            {
                "speculators_model_type": "dspark",
                "aux_hidden_state_layer_ids": [1],
                "transformer_layer_config": {"vocab_size": 64, "num_attention_heads": 2},
            },
            "config.json lacks hidden_size, num_hidden_layers",
        ),
        ({"rope_parameters": "x"}, "rope_parameters"),
    ],
    ids=str,
)
def test_broken_configs_are_refused_by_field(edited, change, field):
    folder = edited("drafter", "config.json", change)
    with pytest.raises(ValueError, match=f"{folder}.*{field}") as caught:
        AutoDrafter.from_pretrained(folder)
    assert caught.type is ValueError


def test_labels_take_no_memory(edited):
    folder = edited("drafter", "config.json", {"num_labels": 10**12, "problem_type": "regression"})
    for load in (AutoDrafter, DSparkModel):
        assert len(load.from_pretrained(folder).config.id2label) == 2
    folder = edited("drafter", "config.json", {"id2label": {str(label): "x" for label in range(1000)}})
    assert len(AutoDrafter.from_pretrained(folder).config.id2label) == 2


def test_a_block_longer_than_the_target_is_not_bound(edited, target):
    # A config may claim any number of positions; the target knows its own.
    folder = edited("drafter", "config.json", {"block_size": 1000, "max_position_embeddings": 10**7})
    drafter = AutoDrafter.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"block_size=1000 .*max_position_embeddings=512"):
        target.generate(torch.tensor([[1, 2, 3]]), assistant_model=drafter, max_new_tokens=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "../../x", "rope_theta": 1e4}}, "rope_type must be one of default, "),
        ({"rope_parameters": {"rope_type": None, "rope_theta": 1e4}}, "rope_type must be one of default, .*got None"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta must be a finite .*got None"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 3,
                                 "long_factor": [1.0] * 3, "original_max_position_embeddings": 64}},
            "short_factor of rope_parameters must be 4 numbers",
        ),
        ({"intermediate_size": 40}, r"mlp\.\w+\.weight in .* has the shape .* asks for"),
        ({"target_layer_ids": list(range(10**5, 0, -1))}, "target_layer_ids must be ascending"),
    ],
    ids=["rope", "no rope", "no base", "longrope", "size", "taps"],
)  # fmt: skip
def test_errors_name_the_field_and_are_short(edited, change, message):
    folder = edited("drafter", "config.json", change)
    with pytest.raises(ValueError, match=message) as caught:
        AutoDrafter.from_pretrained(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize("more", [{}, {"metadata": None}, {"metadata": [1]}], ids=str)
def test_an_index_without_metadata_is_loaded(edited, whole, more):
    folder = edited("drafter", "config.json", {})
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    names = dict.fromkeys(load_file(folder / shard), shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names, **more}))
    drafter, other = AutoDrafter.from_pretrained(folder), AutoDrafter.from_pretrained(whole / "drafter")
    assert drafter.name_or_path == str(folder) and torch.equal(drafter.fc.weight, other.fc.weight)
    (folder / shard).unlink()
    with pytest.raises(ValueError, match=f"lacks {shard}, which its index names"):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize(("make", "field"), [(Eagle3Model, "ttt_length"), (DSparkModel, "block_size")])
def test_new_drafters_have_no_such_blocks_either(target, make, field):
    with pytest.raises(ValueError, match=f"{field}=600 proposes more"):
        make.from_target(target, **{field: 600})
    assert DFlashConfig.from_target(target, block_size=512).num_slots == 512


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "X"},
        {"peft_type": ["LORA"]},
        {"r": "x"},
        {"lora_alpha": "x"},
        {"task_type": "CAUSAL_LM"},
        {"modules_to_save": ["fc"]},
        {"target_modules": 7},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"base_model_name_or_path": 7},
        {"base_model_name_or_path": None},
    ],
    ids=str,
)
def test_broken_adapters_are_refused(edited, change):
    folder = edited("adapter", "adapter_config.json", change)
    with pytest.raises(ValueError, match=f"The adapter in {folder}") as caught:
        AutoDrafter.from_pretrained(folder)
    assert caught.type is ValueError


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rank_pattern": {"(((q_proj)*)*)*!": 2}}, "rank_pattern is an expression whose search may not end"),
        ({"target_modules": "(([a-z._0-9]*)*)*!"}, "target_modules is an expression whose search may not end"),
        ({"exclude_modules": "(([a-z._0-9]*)*)*!"}, "exclude_modules is an expression"),
        ({"r": "4"}, "r must be a whole number above 0, got '4'"),
        ({"peft_type": "EVIL"}, "peft_type must be a method of the installed PEFT, got 'EVIL'"),
        ({"layer_replication": [[0, 99]]}, "layer_replication must be left out"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights must be one of"),
        ({"init_lora_weights": "pissa_niter_99999999"}, "init_lora_weights must be one of"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern must be numbers by module"),
        ({"modules_to_save": [7]}, "modules_to_save must be names of modules"),
    ],
    ids=str,
)
def test_fields_of_adapters_are_looked_at_before_anything_is_made(edited, change, field):
    folder = edited("adapter", "adapter_config.json", change)
    with pytest.raises(ValueError, match=f"adapter_config.json: {field}"):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"r": 200_000}, r"\(200000, 16\), which is \(2, 16\)"),
        ({"r": 16}, r"\(16, 16\), which is \(2, 16\)"),
        ({"rank_pattern": {"q_proj": 10**10}}, r"\(10000000000, 16\), which is"),
        ({"target_modules": ["q_proj", "v_proj"]}, r"v_proj.lora_A.weight of shape \(2, 16\), which is not there"),
    ],
    ids=str,
)
def test_tensors_of_adapters_are_of_the_shapes_that_its_config_asks_for(edited, change, shape):
    folder = edited("adapter", "adapter_config.json", change)
    # Somewhere in the file, but not in this layer.
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({**weights, "other": torch.zeros(16, 200_000)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"adapter_config.json asks for the tensor .*{shape}"):
        AutoDrafter.from_pretrained(folder)


METHODS = {
    "AdaLoRA": (AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["q_proj"]), "init_r"),
    "VeRA": (VeraConfig(r=4, target_modules=["q_proj"], save_projection=True), "r"),
    "VeRA without": (VeraConfig(r=4, target_modules=["q_proj"], save_projection=False), "r"),
    "LoHa": (LoHaConfig(r=2, target_modules=["q_proj"]), "r"),
    "FourierFT": (FourierFTConfig(n_frequency=8, target_modules=["q_proj"]), "n_frequency"),
}


@pytest.mark.parametrize("name", METHODS)
def test_no_method_of_adapters_takes_memory_that_its_file_does_not_fill(whole, tmp_path, name):
    config, field = METHODS[name]
    adapted = get_peft_model(AutoDrafter.from_pretrained(whole / "drafter"), copy.deepcopy(config))
    adapted.save_pretrained(tmp_path)
    assert isinstance(AutoDrafter.from_pretrained(tmp_path), PeftModel)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: 10**8}))
    with pytest.raises(ValueError, match="adapter_config.json|n_frequency"):
        AutoDrafter.from_pretrained(tmp_path)
    if name == "VeRA without":
        # Both say so, but the matrix is made from a seed.
        path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 10**5}))
        weights = load_file(tmp_path / "adapter_model.safetensors")
        large = {key: torch.zeros(10**5) if "lambda_d" in key else one for key, one in weights.items()}
        save_file(large, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ValueError, match="numbers, of which most are not in .*Lower its rank"):
            AutoDrafter.from_pretrained(tmp_path)


@pytest.mark.parametrize("modules", ["all-linear", r".*\.(q_proj|v_proj)", ["q_proj"]], ids=str)
def test_usual_names_of_modules_are_taken(whole, tmp_path, modules):
    drafter = AutoDrafter.from_pretrained(whole / "drafter")
    get_peft_model(drafter, LoraConfig(r=2, target_modules=modules)).save_pretrained(tmp_path)
    assert isinstance(AutoDrafter.from_pretrained(tmp_path), PeftModel)


def test_pickles_are_not_read(edited, whole):
    folder = edited("adapter", "adapter_config.json", {})
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"no adapter_model.safetensors in .*pickle \(adapter_model.bin\) is not read"
    ):
        AutoDrafter.from_pretrained(folder)
    with pytest.raises(ValueError, match="use_safetensors=False for .*pickles are not read"):
        AutoDrafter.from_pretrained(whole / "drafter", use_safetensors=False)


def test_an_adapter_of_itself_is_refused(edited, tmp_path):
    folder = edited("adapter", "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "adapter")})
    with pytest.raises(
        ValueError, match=f"The adapter in {folder} was trained on the drafter .*: {folder} is an adapter itself"
    ):
        AutoDrafter.from_pretrained(folder)


@pytest.fixture
def index(edited, tmp_path):
    """`index(weight_map)`: a drafter whose weights lie where an index says."""
    folder = edited("drafter", "config.json", {})
    names = list(load_file(folder / "model.safetensors"))
    torch.save(load_file(folder / "model.safetensors"), folder / "weights.bin")
    os.rename(folder / "model.safetensors", tmp_path / "outside.safetensors")

    def write(shard):
        content = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
        if shard in (None, []):
            content["weight_map"] = shard
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.mark.parametrize(
    "shard",
    ["weights.bin", "../outside.safetensors", "/tmp/outside.safetensors", "a\\..\\b.safetensors", "C:x.safetensors",
     "sub/x.safetensors", "..", ".safetensors/", 7, ["x.safetensors"], {}, "", None, []],
    ids=str,
)  # fmt: skip
def test_indexes_name_safetensors_beside_them_only(index, shard):
    folder = index(shard)
    for read in (AutoDrafter.from_pretrained, DrafterFolder.read):
        with pytest.raises(ValueError, match=r"model.safetensors.index.json (must hold|says that the tensor)"):
            read(folder)


def test_missing_shards_are_named(index):
    folder = index("gone.safetensors")
    with pytest.raises(ValueError, match=f"{folder} lacks gone.safetensors, which its index names"):
        AutoDrafter.from_pretrained(folder)
    with pytest.raises(ValueError, match="There is no gone.safetensors"):
        DrafterFolder.read(folder)
