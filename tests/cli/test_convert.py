"""`dspark convert`: from one packaging into another, and which engines load it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter, DSparkForCausalLM, DSparkModel


@pytest.fixture
def speculator(tmp_path, tiny_drafter_dir):
    """The tiny drafter as speculators would write it."""
    drafter = AutoDrafter.from_pretrained(tiny_drafter_dir)
    own = drafter.config
    fields = ("block_size", "mask_token_id", "markov_rank", "markov_head_type", "enable_confidence_head",
              "confidence_head_with_markov", "sample_from_anchor")  # fmt: skip
    config = {
        "speculators_model_type": "dspark",
        "transformer_layer_config": own.decoder_config.to_diff_dict(),
        "aux_hidden_state_layer_ids": [tap + 1 for tap in own.target_layer_ids],
    } | {name: getattr(own, name) for name in fields}
    folder = tmp_path / "speculator"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(f"{tiny_drafter_dir}/model.safetensors"), folder / "model.safetensors", {"format": "pt"})
    return folder


def test_speculator(dspark, speculator, tmp_path, tiny_drafter_dir, tiny_target_dir):
    outcome = dspark("convert", speculator, tmp_path / "flat", "--target", tiny_target_dir)
    assert outcome.code == 0 and "DSparkModel of 4 slots" in outcome.out
    folders = (tmp_path / "flat", Path(tiny_drafter_dir))
    written, original = (json.loads((folder / "config.json").read_text()) for folder in folders)
    for name in ("target_layer_ids", "num_target_layers", "block_size", "architectures", "sample_from_anchor"):
        assert written[name] == original[name]


def test_what_cannot_be_converted(dspark, speculator, tmp_path):
    outcome = dspark("convert", speculator, tmp_path / "flat")
    assert outcome.code == 2 and "name the target with --target" in outcome.err
    assert not (tmp_path / "flat").exists()
    outcome = dspark("convert", speculator, speculator)
    assert outcome.code == 2 and "is not empty" in outcome.err


def test_wrong_paths_are_told_as_by_other_commands(dspark, speculator, tmp_path):
    for source, target in ((tmp_path / "absent", "org/target"), (speculator, tmp_path / "absent")):
        outcome = dspark("convert", source, tmp_path / "flat", "--target", target)
        assert outcome.code == 2 and f"There is no folder {tmp_path / 'absent'}" in outcome.err


def test_beside_a_target(dspark, tmp_path, tiny_drafter_dir, tiny_target_dir):
    out, both = str(tmp_path / "both"), ("--format", "v4")
    for arguments, message in (
        (("--format", "v5"), "--format must be flat, speculators, specforge or v4, got 'v5'"),
        (both, "name its folder with --target, got None"),
        ((*both, "--check", "vllm"), "--check knows nothing of --format v4"),
        ((*both, "--target", "org/Model"), "name its folder with --target, got 'org/Model'"),
    ):
        outcome = dspark("convert", tiny_drafter_dir, out, *arguments)
        assert outcome.code != 0 and message in outcome.err


@pytest.fixture
def qwen_shaped(tmp_path, tiny_target_dir):
    """A drafter with a reduced vocabulary that engines have a class for."""
    fields = {"family": "qwen3", "num_hidden_layers": 1, "target_layer_ids": [0, 2], "markov_rank": 4, "block_size": 4}
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    DSparkModel.from_target(target, **fields, draft_vocab_size=40).save_pretrained(tmp_path / "drafter")
    return tmp_path / "drafter"


def test_a_reduced_vocabulary_becomes_one_that_vllm_serves(dspark, qwen_shaped, tmp_path, tiny_target_dir):
    outcome = dspark("convert", qwen_shaped, "--check", "vllm")
    assert outcome.code == 1 and "vLLM (0.33) does not load it: it needs the output head's rows" in outcome.out
    arguments = ("convert", qwen_shaped, tmp_path / "out", "--format", "speculators", "--check", "vllm")
    outcome = dspark(*arguments)
    assert outcome.code == 2 and "name the target with --target" in outcome.err
    outcome = dspark(*arguments, "--check", "speculators", "--target", tiny_target_dir)
    assert outcome.code == 0, outcome.err
    assert "vLLM (0.33) loads it" in outcome.out and "speculators (0.9) loads it" in outcome.out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["speculators_config"]["verifier"]["name_or_path"] == Path(tiny_target_dir).name
    outcome = dspark("convert", tmp_path / "out", tmp_path / "back")
    assert outcome.code == 0, outcome.err
    first, second = (load_file(folder / "model.safetensors") for folder in (qwen_shaped, tmp_path / "back"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    outcome = dspark("convert", tmp_path / "back", "--check", "sglang")
    assert outcome.code == 1 and "SGLang (0.5.23) does not load it: it has no reduced draft vocabulary." in outcome.out


def test_a_check_wants_an_engine_or_a_folder(dspark, qwen_shaped, hub):
    outcome = dspark("convert", qwen_shaped)
    assert outcome.code == 2 and "Name the folder to write, or an engine with --check." in outcome.err
    outcome = dspark("convert", qwen_shaped, "--check", "tgi")
    assert outcome.code == 2 and "an engine called 'tgi' here; known are vllm, sglang" in outcome.err
    AutoDrafter.from_pretrained(qwen_shaped).push_to_hub("org/drafter")
    outcome = dspark("convert", "org/drafter", "--check", "sglang")
    assert outcome.code == 1 and "no reduced draft vocabulary" in outcome.out
    outcome = dspark("convert", "org/absent", "--check", "sglang")
    assert outcome.code == 2 and "org/absent" in outcome.err


def test_a_target_of_other_sizes_is_refused(dspark, speculator, tmp_path, tiny_target_dir):
    config = json.loads((Path(tiny_target_dir) / "config.json").read_text())
    for name, message in (("hidden_size", "The hidden size differs"), ("vocab_size", "The vocabulary differs"),
                          ("num_hidden_layers", "cannot be tapped")):  # fmt: skip
        other = tmp_path / name
        other.mkdir()
        (other / "config.json").write_text(json.dumps(config | {name: config[name] // 2}))
        outcome = dspark("convert", speculator, tmp_path / "flat", "--target", other)
        assert outcome.code == 2 and message in outcome.err, outcome.err
        assert not (tmp_path / "flat").exists()


def test_what_is_no_drafter_is_told_as_that(dspark, qwen_shaped, tmp_path, tiny_target_dir):
    outcome = dspark("convert", tiny_target_dir, "--check", "vllm")
    assert outcome.code == 2 and "is no DSpark drafter nor another that is read" in outcome.err
    assert "lacks the tensor" not in outcome.err + outcome.out
    # Of a target with its drafter, the drafter is meant.
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    both = DSparkForCausalLM.from_parts(target, AutoDrafter.from_pretrained(qwen_shaped))
    both.save_pretrained(tmp_path / "both")
    outcome = dspark("convert", tmp_path / "both", "--check", "sglang")
    assert outcome.code == 1 and "does not load it: it has no reduced draft vocabulary." in outcome.out


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(dspark, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    outcome = dspark("convert", "org/never-asked-for", tmp_path / "file" / "out")
    assert outcome.code == 2 and f"{tmp_path / 'file'} is no folder. Give a folder elsewhere." in outcome.err
    monkeypatch.setattr("os.access", lambda *args: False)
    outcome = dspark("convert", "org/never-asked-for", tmp_path / "new" / "out")
    assert outcome.code == 2 and f"{tmp_path} may not be written" in outcome.err
    assert not (tmp_path / "new").exists()


def test_a_check_reads_fields_and_tensors(dspark, tmp_path, tiny_target_dir):
    fields = {"family": "qwen3", "num_hidden_layers": 1, "target_layer_ids": [0, 2], "markov_rank": 4, "block_size": 4}
    target, folder = AutoModelForCausalLM.from_pretrained(tiny_target_dir), tmp_path / "drafter"
    DSparkModel.from_target(target, **fields).save_pretrained(folder)
    assert dspark("convert", folder, "--check", "vllm").code == 0
    tensors = load_file(folder / "model.safetensors")
    del tensors["layers.0.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    outcome = dspark("convert", folder, "--check", "vllm")
    assert outcome.code == 1 and "does not load it: it lacks the tensor layers.0.self_attn.q_proj" in outcome.out
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "x"}))
    outcome = dspark("convert", folder, "--check", "vllm")
    assert outcome.code == 2 and "hidden_size must be a whole number above 0, got 'x'" in outcome.err
