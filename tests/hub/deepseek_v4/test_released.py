"""The drafter inside a DeepSeek-V4 checkpoint: found by fields and tensors, read alone, and exactly."""

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

LAST = "model-00004-of-00004.safetensors"
GOLDEN = Path(__file__).parents[2] / "golden" / "v4_dspark"


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden repository whose name says nothing."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "some-model"))


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in (config | fields).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def change_tensors(folder, file, change):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def test_the_targets_files_are_never_opened(folder):
    (folder / "model-00001-of-00004.safetensors").write_bytes(b"no safetensors")
    drafter = AutoDrafter.from_pretrained(folder)
    assert drafter.config.num_hidden_layers == 3 and drafter.config.target_layer_ids == [0, 1, 2]
    assert drafter.name_or_path == str(folder) and drafter.config.target_name_or_path == "some-model"
    (folder / "model-00001-of-00004.safetensors").unlink()
    AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize("block", [(8, 8), (4, 8)])
def test_quantised_weights_are_read_exactly(tmp_path, block):
    numbers = write_released(tmp_path / "released", GOLDEN, block)
    drafter = AutoDrafter.from_pretrained(tmp_path / "released")
    layer, state = drafter.layers[1], drafter.state_dict()
    assert drafter.dtype == torch.bfloat16
    pairs = {
        "mtp.0.main_proj.weight": drafter.fc.weight,
        "mtp.1.attn.wq_b.weight": layer.self_attn.q_b_proj.weight,
        "mtp.1.attn.wkv.weight": layer.self_attn.kv_proj.weight,
        "mtp.1.attn.wo_a.weight": layer.self_attn.o_a_proj.weight,
        "mtp.1.ffn.shared_experts.w2.weight": layer.mlp.shared_experts.down_proj.weight,
        "mtp.1.ffn.experts.3.w2.weight": layer.mlp.experts.down_proj[3],
        "mtp.1.ffn.experts.5.w1.weight": layer.mlp.experts.gate_up_proj[5, :32],
        "mtp.1.ffn.experts.5.w3.weight": layer.mlp.experts.gate_up_proj[5, 32:],
        "mtp.2.markov_head.markov_w2.weight": drafter.markov_head.markov_w2.weight,
    }
    for name, weight in pairs.items():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight.float(), numbers[name].float()), name
    for name, weight in {
        "mtp.1.attn.attn_sink": layer.self_attn.sinks,
        "mtp.1.hc_ffn_fn": layer.ffn_hc.fn,
        "mtp.1.ffn.gate.bias": layer.mlp.gate.e_score_correction_bias,
        "mtp.2.hc_head_scale": drafter.hc_head.hc_scale,
    }.items():
        assert weight.dtype == torch.float32 and torch.equal(weight, numbers[name]), name
    # In the flat layout it is read again as it is, by whoever knows nothing of the release.
    drafter.save_pretrained(tmp_path / "flat")
    again = AutoDrafter.from_pretrained(tmp_path / "flat").state_dict()
    assert not any(name.startswith("mtp.") for name in again)
    assert state.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in state.items())


@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_file_that_holds_tensors_of_both(folder, tmp_path, is_quantised):
    if is_quantised:
        shutil.rmtree(folder)
        write_released(folder, GOLDEN)
    expected = AutoDrafter.from_pretrained(folder).state_dict()
    merged = {}
    for shard in folder.glob("*.safetensors"):
        merged |= load_file(shard)
        shard.unlink()
    save_file(merged, folder / "model.safetensors", {"format": "pt"})
    (folder / INDEX).unlink()
    found = AutoDrafter.from_pretrained(folder).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(value, found[name]) for name, value in expected.items())


def test_blocks_of_the_released_size(tmp_path):
    sizes = {"hidden_size": 128, "q_lora_rank": 128, "head_dim": 128, "num_attention_heads": 2, "o_groups": 1,
             "o_lora_rank": 128, "moe_intermediate_size": 128, "vocab_size": 193}  # fmt: skip
    # How many rows and columns there are of what is not as in the golden case.
    shapes = {"main_proj": (128, 384), "wq_b": (256, 128), "wo_a": (128, 256), "hc_attn_fn": (24, 512),
              "hc_ffn_fn": (24, 512), "hc_head_fn": (4, 512), "gate.weight": (6, 128), "markov": (193, 16),
              "confidence": (1, 144), "attn_sink": (2,)}  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    shutil.copytree(GOLDEN, tmp_path / "wide", ignore=shutil.ignore_patterns("expected*", "target*", "*00001*"))
    change_config(tmp_path / "wide", **sizes)
    for shard in (tmp_path / "wide").glob("*.safetensors"):
        grown = {}
        for name, weight in load_file(shard).items():
            shape = next((shape for part, shape in shapes.items() if part in name), None)
            if shape is None and not name.endswith((".gate.bias", "_base", "_scale")):
                shape = (128,) * weight.dim()
            grown[name] = weight if shape is None else torch.randn(shape, generator=generator)
        save_file(grown, shard, {"format": "pt"})
    numbers = write_released(tmp_path / "released", tmp_path / "wide", (128, 128))
    drafter = AutoDrafter.from_pretrained(tmp_path / "released")
    layer = drafter.layers[0]
    for name, weight in {
        "mtp.0.main_proj.weight": drafter.fc.weight,
        "mtp.0.attn.wq_b.weight": layer.self_attn.q_b_proj.weight,
        "mtp.0.ffn.experts.2.w3.weight": layer.mlp.experts.gate_up_proj[2, 128:],
    }.items():
        assert torch.equal(weight.float(), numbers[name].float()), name


def test_where_memory_is_too_small_it_is_told_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr("dspark_hf.hub.deepseek_v4.loading.get_max_memory", lambda: {"cpu": 10**5})
    for shard in folder.glob("*.safetensors"):
        shard.write_bytes(b"no safetensors")
    message = r"some-model takes 0\.0 GB in float32, and this machine's memory has 0\.0 GB free"
    with pytest.raises(ValueError, match=message):
        AutoDrafter.from_pretrained(folder)


def test_its_size_is_told_first_and_a_bar_shows_how_far_it_is(folder, monkeypatch, caplog, capfd):
    monkeypatch.setattr("dspark_hf.hub.deepseek_v4.loading._GB", 10**4)
    AutoDrafter.from_pretrained(folder)
    assert "some-model takes" in caplog.text and "GB in float32; this machine's memory has" in caplog.text
    assert "Loading weights" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: change_config(folder, model_type="deepseek_v41"), "DeepSeek-V4.1 target, whose drafter is an"),
        (lambda folder: change_config(folder, dspark_block_size=None, dspark_noise_token_id=None,
                                      dspark_target_layer_ids=None, dspark_markov_rank=None),
         r"without a DSpark drafter inside.*\(found \[\]\).*found 1\d\d tensors mtp"),
        (lambda folder: change_config(folder, dspark_noise_token_id=None), r"config.json lacks \['dspark_noise_token"),
        (lambda folder: change_index(folder, lambda names: {
            name: file for name, file in names.items() if not name.startswith("mtp.")}), "found 0 tensors mtp"),
        (lambda folder: change_index(folder, lambda names: {"mtp.0.e_proj.weight": "model-00002-of-00004.safetensors"}
                                     | {name: file for name, file in names.items() if "main_proj" not in name}),
         "holds the older MTP head of DeepSeek-V4"),
        (lambda folder: change_index(folder, lambda names: {
            name: file for name, file in names.items() if not name.startswith("mtp.1.")}),
         r"holds the stages \[0, 2\] of a drafter of 3"),
        (lambda folder: change_index(folder, lambda names: {
            name: file for name, file in names.items() if not name.startswith("mtp.2.")}),
         r"holds the stages \[0, 1\] of a drafter of 3"),
        (lambda folder: (folder / "model-00003-of-00004.safetensors").unlink(),
         "lacks model-00003-of-00004.safetensors, which its index names"),
        (lambda folder: (folder / "model-00003-of-00004.safetensors").write_bytes(b"cut"),
         "model-00003-of-00004.safetensors is damaged, or the index does not belong to it"),
        (lambda folder: change_tensors(folder, "model-00003-of-00004.safetensors",
                                       lambda tensors: tensors.pop("mtp.1.attn.wkv.weight")), "does not belong to it"),
        (lambda folder: (change_index(folder, lambda names: {
            name: file for name, file in names.items() if name != "mtp.2.norm.weight"}),
            change_tensors(folder, LAST, lambda tensors: tensors.pop("mtp.2.norm.weight"))),
         "lacks 1 tensors"),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_no_drafter_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda tensors: tensors.update({"mtp.1.attn.wkv.scale": tensors["mtp.1.attn.wkv.scale"][:2].clone()}),
         r"\[2, 8\]"),
        (lambda tensors: tensors.update({"mtp.1.ffn.experts.0.w1.scale":
                                         tensors["mtp.1.ffn.experts.0.w1.scale"][:, :1].clone()}), r"\[32, 1\]"),
    ],
)  # fmt: skip
def test_a_scale_of_the_wrong_shape_is_refused(tmp_path, change, found):
    write_released(tmp_path, GOLDEN)
    change_tensors(tmp_path, "model-00003-of-00004.safetensors", change)
    with pytest.raises(ValueError, match=f"scale has the shape {found}; there must be one scale a block"):
        AutoDrafter.from_pretrained(tmp_path)
