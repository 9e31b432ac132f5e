"""A drafter written beside its target in the form of the releases is read again as it was."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter, DSparkForCausalLM, DSparkModel
from dspark_hf.hub.deepseek_v4.writing import engines_of, released_tensors, write_stages

sys.path.append(str(Path(__file__).parent))
from released import write_released  # noqa: E402

GOLDEN = Path(__file__).parents[2] / "golden" / "v4_dspark"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def plain(tmp_path):
    """The golden target without its drafter."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "plain", ignore=shutil.ignore_patterns("expected*", "target*")))
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    own = {name: file for name, file in weight_map.items() if not name.startswith("mtp.")}
    for file in set(weight_map.values()) - set(own.values()):
        (folder / file).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": own}))
    config = json.loads((folder / "config.json").read_text())
    fields = {name: value for name, value in config.items() if not name.startswith("dspark_")}
    (folder / "config.json").write_text(json.dumps(fields | {"compress_ratios": config["compress_ratios"][:3]}))
    return folder


def test_names_and_numbers_are_those_of_the_release():
    weight_map = json.loads((GOLDEN / INDEX).read_text())["weight_map"]
    found = released_tensors(AutoDrafter.from_pretrained(GOLDEN))
    assert found.keys() == {name for name in weight_map if name.startswith("mtp.")}
    for name, weight in found.items():
        with safe_open(GOLDEN / weight_map[name], "pt") as file:
            assert torch.equal(file.get_tensor(name), weight), name


def test_it_is_read_again_and_drafts(plain, tmp_path):
    drafter = AutoDrafter.from_pretrained(GOLDEN)
    expected = {name: value.clone() for name, value in drafter.state_dict().items()}
    write_stages(drafter, plain, tmp_path / "both")
    again = AutoDrafter.from_pretrained(tmp_path / "both")
    ours, theirs = again.config.to_dict(), AutoDrafter.from_pretrained(GOLDEN).config.to_dict()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"target_name_or_path", "_name_or_path"}
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    model = DSparkForCausalLM.from_pretrained(tmp_path / "both", index_topk=64)
    ids = torch.arange(40, 52).unsqueeze(0)
    out = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(out, model.generate(ids, max_new_tokens=8, do_sample=False, speculation=False))


def stored_dtypes(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_dtype() for name in file.keys() if "mtp." in name or "fc" in name}
    return found


def test_dtypes_are_those_of_the_release(plain, tmp_path):
    """Norms too, which are in float32 in memory, and beside a target of another dtype."""
    write_released(tmp_path / "released", GOLDEN)
    drafter = AutoDrafter.from_pretrained(tmp_path / "released")
    assert drafter.layers[0].input_layernorm.weight.dtype == torch.float32 and drafter.dtype == torch.bfloat16
    drafter.save_pretrained(tmp_path / "flat")
    flat = load_file(tmp_path / "flat" / "model.safetensors")
    in_float32 = ("_hc.", "hc_head.", "sinks", "e_score_correction_bias")
    for name, tensor in flat.items():
        assert tensor.dtype == (torch.float32 if any(part in name for part in in_float32) else torch.bfloat16), name
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    write_stages(AutoDrafter.from_pretrained(tmp_path / "flat"), plain, tmp_path / "both")
    released, both = (stored_dtypes(tmp_path / name) for name in ("released", "both"))
    names = {name for name, dtype in released.items() if dtype in ("BF16", "F32") and name.startswith("mtp.")}
    assert any("norm" in name for name in names) and any("hc_attn" in name for name in names)
    assert {name: both[name] for name in names} == {name: released[name] for name in names}
    again = AutoDrafter.from_pretrained(tmp_path / "both")
    assert again.dtype == again.config.dtype == torch.bfloat16
    expected = drafter.state_dict()
    assert all(torch.equal(tensor.float(), expected[name].float()) for name, tensor in again.state_dict().items())
    # What bfloat16 does not hold is not rounded.
    again.norm.weight.data += 2**-20
    again.save_pretrained(tmp_path / "trained")
    assert torch.equal(AutoDrafter.from_pretrained(tmp_path / "trained").norm.weight, again.norm.weight)


def test_a_target_in_one_file_and_one_without_a_drafter(plain, tmp_path):
    weight_map = json.loads((plain / INDEX).read_text())["weight_map"]
    tensors = {}
    for file in set(weight_map.values()):
        tensors |= load_file(plain / file)
        (plain / file).unlink()
    (plain / INDEX).unlink()
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is a DeepSeek-V4 target without a DSpark drafter inside"):
        DSparkForCausalLM.from_pretrained(plain)
    drafter = AutoDrafter.from_pretrained(GOLDEN)
    write_stages(drafter, plain, tmp_path / "both")
    again = AutoDrafter.from_pretrained(tmp_path / "both").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in drafter.state_dict().items())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device_map='cuda' names GPU 0, and torch sees 0 here"):
            AutoDrafter.from_pretrained(tmp_path / "both", device_map="cuda")


def test_a_trained_one_goes_through_the_command(plain, tmp_path, dspark):
    AutoDrafter.from_pretrained(GOLDEN, dtype="bfloat16").save_pretrained(tmp_path / "trained")
    (plain / "encoding").mkdir()
    (plain / "encoding" / "encoding_dsv4.py").write_text("x = 1")
    outcome = dspark("convert", tmp_path / "trained", tmp_path / "both", "--format", "v4", "--target", plain)
    assert outcome.code == 0, outcome.err
    assert "Target and drafter are unquantised: SGLang builds both so" in outcome.out
    assert (tmp_path / "both" / "encoding" / "encoding_dsv4.py").read_text() == "x = 1"
    stages = sorted((tmp_path / "both").glob("model-mtp-*.safetensors"))
    assert [path.name for path in stages] == [f"model-mtp-{number}.safetensors" for number in range(3)]
    with safe_open(stages[0], "pt") as file:
        assert file.get_slice("mtp.0.main_proj.weight").get_dtype() == "BF16"
        assert file.get_slice("mtp.0.hc_attn_fn").get_dtype() == "F32"
    expected = AutoDrafter.from_pretrained(tmp_path / "trained").state_dict()
    found = AutoDrafter.from_pretrained(tmp_path / "both", dtype="bfloat16").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())

    path = tmp_path / "both" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "fp8"}}))
    assert "quantised (fp8), and the drafter's are not: SGLang builds the drafter by" in engines_of(tmp_path / "both")


def test_its_files_are_its_own_and_as_open_as_any_new_one(plain, tmp_path):
    plain.joinpath("tokenizer.json").write_text("{}")
    before = os.umask(0o027)
    try:
        write_stages(AutoDrafter.from_pretrained(GOLDEN), plain, tmp_path / "both")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "both").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert {path.stat().st_nlink for path in files} == {1} and len(list(plain.glob("*.safetensors"))) == 1
    before = (plain / "tokenizer.json").read_bytes()
    with open(tmp_path / "both" / "tokenizer.json", "w") as file:
        file.write("changed")
    assert (plain / "tokenizer.json").read_bytes() == before


def test_a_disk_without_room_is_told_before_anything_is_written(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=10**5))
    with pytest.raises(ValueError, match=r"take 0\.0 GB, and the disk of .*both has 0\.0 GB free"):
        write_stages(AutoDrafter.from_pretrained(GOLDEN), plain, tmp_path / "new" / "both")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "own",
    [{"routed_scaling_factor": 3.0}, {"swiglu_limit": 9.0}, {"q_lora_rank": 8}, {"sliding_window": 16}],
)  # fmt: skip
def test_a_field_of_the_drafters_own_is_not_lost(plain, tmp_path, own):
    target = AutoModelForCausalLM.from_pretrained(plain, index_topk=64)
    fields = {"target_layer_ids": [0, 2], "block_size": 5, "markov_rank": 8, "mask_token_id": 190}
    # What only the target's compressed tokens need may differ.
    write_stages(DSparkModel.from_target(target, family="deepseek_v4", **fields), plain, tmp_path / "both")
    drafter = DSparkModel.from_target(target, family="deepseek_v4", **fields, **own)
    (name,) = own
    with pytest.raises(ValueError, match=rf"shares its target's fields, and this one has its own \['{name}'\]"):
        write_stages(drafter, plain, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_the_form_has_no_place_for_is_refused(plain, tmp_path):
    drafter = AutoDrafter.from_pretrained(GOLDEN)
    with pytest.raises(ValueError, match=r"has tensors mtp\.\* already"):
        write_stages(drafter, GOLDEN, tmp_path / "both")
    drafter.config.decoder_config.n_routed_experts = 4
    with pytest.raises(ValueError, match=r"has its own \['n_routed_experts'\]"):
        write_stages(drafter, plain, tmp_path / "both")
    drafter.config.num_target_layers = 5
    with pytest.raises(ValueError, match=r"\(64, 5\), and .*plain is a deepseek_v4 one of \(64, 3\)"):
        write_stages(drafter, plain, tmp_path / "both")
    drafter.config.sample_from_anchor = False
    with pytest.raises(ValueError, match="Save it in the flat layout"):
        write_stages(drafter, plain, tmp_path / "both")
    assert not (tmp_path / "both").exists()
