"""`dspark convert`: other packagings, in the flat layout."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dspark_hf import AutoDrafter


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
        (("--format", "v5"), "--format must be flat or v4, got 'v5'"),
        (both, "name its folder with --target, got None"),
        ((*both, "--target", "org/Model"), "name its folder with --target, got 'org/Model'"),
    ):
        outcome = dspark("convert", tiny_drafter_dir, out, *arguments)
        assert outcome.code != 0 and message in outcome.err
