"""How a DeepSeek-V4 drafter's weights may be stored: what transformers would take for other numbers is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark_hf import AutoDrafter

sys.path.append(str(Path(__file__).parent))
from released import INDEX, write_released  # noqa: E402

GOLDEN = Path(__file__).parents[2] / "golden" / "v4_dspark"
MIDDLE = "model-00003-of-00004.safetensors"
SCALE, PACKED_SCALE = "mtp.1.attn.wkv.scale", "mtp.1.ffn.experts.0.w1.scale"
WEIGHT, PACKED = "mtp.1.attn.wkv.weight", "mtp.1.ffn.experts.0.w1.weight"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A checkpoint in the released form, and its numbers."""
    folder = tmp_path_factory.mktemp("released")
    return folder, write_released(folder, GOLDEN)


@pytest.fixture
def folder(released, tmp_path):
    return Path(shutil.copytree(released[0], tmp_path / "some-model"))


def change_tensors(folder, change, file=MIDDLE):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_scales_of_other_types_are_the_same_numbers(folder, released, kind):
    for path in folder.glob("*.safetensors"):
        scales = {name: one for name, one in load_file(path).items() if name.endswith(".scale")}
        scales = {name: one.view(kind) if kind == torch.uint8 else one.to(kind) for name, one in scales.items()}
        change_tensors(folder, lambda tensors, scales=scales: tensors.update(scales), path.name)
    drafter = AutoDrafter.from_pretrained(folder)
    layer = drafter.layers[1]
    for name, weight in {
        "mtp.0.main_proj.weight": drafter.fc.weight,
        WEIGHT: layer.self_attn.kv_proj.weight,
        "mtp.1.attn.wo_a.weight": layer.self_attn.o_a_proj.weight,
        "mtp.1.ffn.experts.3.w2.weight": layer.mlp.experts.down_proj[3],
    }.items():
        assert torch.equal(weight.float(), released[1][name].float()), name


def filled(value, dtype=torch.float32, name=SCALE):
    """A change: a scale of another type, one entry of which is this value."""

    def change(tensors):
        scale = torch.ones(tensors[name].shape)
        scale.view(-1)[3] = value
        tensors[name] = scale.to(dtype)

    return change


def with_type(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].float().to(dtype)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (filled(float("nan")), f"each entry of {SCALE} must be a power of two, got nan"),
        (filled(float("inf")), f"{SCALE} must be a power of two, got inf"),
        (filled(0), f"{SCALE} must be a power of two, got 0.0"),
        (filled(-2), f"{SCALE} must be a power of two, got -2.0"),
        (filled(3), f"{SCALE} must be a power of two, got 3.0"),
        (filled(3, name=PACKED_SCALE), f"{PACKED_SCALE} must be a power of two, got 3.0"),
        (filled(255, torch.uint8), f"{SCALE} must be an exponent of two, got NaN"),
        (filled(float("nan"), torch.float8_e8m0fnu), f"{SCALE} must be an exponent of two, got NaN"),
        (filled(2, torch.int32), f"{SCALE} is stored as I32, and a scale must be F8_E8M0, U8, BF16, F16, F32"),
        (filled(2, torch.float8_e4m3fn), f"{SCALE} is stored as F8_E4M3, and a scale must be"),
        (with_type(WEIGHT, torch.float8_e5m2), rf"{WEIGHT} of the shape \[.*\] is stored as F8_E5M2"),
        (with_type(PACKED, torch.int16), f"{PACKED} of the shape .* is stored as I16"),
        (with_type("mtp.1.attn.q_norm.weight", torch.float8_e4m3fn), "q_norm.weight .* is stored as F8_E4M3"),
        (with_type("mtp.1.hc_attn_base", torch.int64), "hc_attn_base .* is stored as I64"),
        (with_type("mtp.1.ffn.gate.weight", torch.bool), "gate.weight .* is stored as BOOL"),
        (with_type(WEIGHT, torch.bfloat16), f"{SCALE} is the scale of a weight that is not quantised"),
        (lambda tensors: tensors.update({"mtp.1.attn.q_norm.weight": torch.ones(3)}), "q_norm.weight .* the shape"),
        (lambda tensors: tensors["mtp.1.attn.q_norm.weight"].fill_(float("nan")), "q_a_norm.weight in"),
    ],
    ids=range(18),
)  # fmt: skip
def test_what_would_be_other_numbers_is_refused_by_name(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        AutoDrafter.from_pretrained(folder)
    assert caught.type is ValueError and "some-model" in str(caught.value)


def test_a_scale_that_is_no_power_of_two_is_read_where_the_config_says_so(folder):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, quantization_config=config["quantization_config"] | {"scale_fmt": "float"})
    change_tensors(folder, filled(3))
    AutoDrafter.from_pretrained(folder)
    change_tensors(folder, filled(3, name=PACKED_SCALE))
    with pytest.raises(ValueError, match=f"{PACKED_SCALE} must be a power of two"):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize("number", ["300000000", "9" * 5000, "01", "x", ""])
def test_a_stage_of_any_number_takes_no_memory(folder, number):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][f"mtp.{number}.a"] = MIDDLE
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"holds the stages \[0, 1, 2, 300000000\]|are of no numbered stage"):
        AutoDrafter.from_pretrained(folder)


QUANTISED = {"quant_method": "fp8", "weight_block_size": [8, 8]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": [1]}, "quantization_config must be fields"),
        ({"quantization_config": QUANTISED | {"weight_block_size": 8}}, "weight_block_size must be two whole numbers"),
        ({"quantization_config": QUANTISED | {"weight_block_size": [8]}}, "weight_block_size must be two"),
        ({"quantization_config": QUANTISED | {"weight_block_size": [8, 0]}}, "weight_block_size must be two"),
        ({"quantization_config": QUANTISED | {"weight_block_size": ["8", 8]}}, "weight_block_size must be two"),
        ({"quantization_config": QUANTISED | {"weight_block_size": [7, 8]}}, "in blocks of 7x8"),
        ({"quantization_config": QUANTISED | {"quant_method": "gptq"}}, "quant_method must be fp8, got 'gptq'"),
        ({"quantization_config": QUANTISED | {"fmt": "e5m2"}}, "fmt must be e4m3, got 'e5m2'"),
        ({"quantization_config": QUANTISED | {"scale_fmt": 3}}, "scale_fmt must be text"),
        ({"o_groups": 0}, "o_groups must be a whole number above 0, got 0"),
        ({"o_groups": 7}, "config.json asks for"),
        ({"hidden_size": 2**40}, "hidden_size must be at most 2147483647"),
        ({"hidden_size": 2**31 - 1}, "hidden_size=2147483647|asks for"),
        ({"num_attention_heads": 2**31 - 1, "head_dim": 2**31 - 1, "q_lora_rank": 2**31 - 1}, "head_dim=2147483647"),
        ({"hc_mult": 0}, "hc_mult must be a whole number above 0"),
        ({"hc_mult": 3}, "asks for"),
        ({"hc_mult": "4"}, "hc_mult must be a whole number above 0, got '4'"),
        ({"hc_mult": 10**6}, "asks for"),
        ({"hc_sinkhorn_iters": 10**9}, "hc_sinkhorn_iters must be at most 1000"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number"),
        ({"dspark_target_layer_ids": "ab"}, "dspark_target_layer_ids must be a list of layers"),
        ({"rope_scaling": {"type": "x", "factor": 16}}, "rope_type must be one of default, .*got 'x'"),
        ({"rope_scaling": {"type": "yarn", "factor": "16"}}, "rope_scaling.factor must be a finite number above 0"),
        ({"scoring_func": "x"}, "scoring_func must be sqrtsoftplus or sigmoid, got 'x'"),
        ({"scoring_func": 3}, "scoring_func must be text, got 3"),
        ({"dspark_block_size": 1.5}, "dspark_block_size must be a whole number"),
    ],
    ids=str,
)  # fmt: skip
def test_broken_fields_are_named(folder, fields, message):
    change_config(folder, **fields)
    with pytest.raises(ValueError, match=f"some-model.*({message})") as caught:
        AutoDrafter.from_pretrained(folder)
    assert caught.type is ValueError and len(str(caught.value)) < 1500
