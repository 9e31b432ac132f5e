"""`dspark push`: repositories of drafters and composite ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import READ_TOKEN
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter, DSparkForCausalLM


@pytest.fixture
def folder(tmp_path, tiny_drafter_dir):
    return Path(shutil.copytree(tiny_drafter_dir, tmp_path / "drafter"))


@pytest.fixture
def pushed_target(hub, tiny_target_dir):
    AutoModelForCausalLM.from_pretrained(tiny_target_dir).push_to_hub("org/tiny-target")
    AutoTokenizer.from_pretrained(tiny_target_dir).push_to_hub("org/tiny-target")
    return "org/tiny-target"


def test_a_drafter_with_its_figures(dspark, hub, folder, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps({"tau": 2.5, "accepted_per_slot": [0.9, 0.5]}))
    outcome = dspark(
        "push", folder, "org/drafter", "--evaluation", tmp_path / "chat.json", "--base-model", "org/Model",
        "--license", "mit", "--tag", "chat", "--dataset", "org/chats", "--private", "--message", "First", "--yes",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{hub.url}/org/drafter/commit/")
    text = hub.files("org/drafter")["README.md"].decode()
    for part in ("| chat | 2.50 |", "base_model: org/Model\n", "license: mit", "- org/chats", "acceptance.png"):
        assert part in text
    assert hub.repos["model", "org/drafter"].private
    again = dspark("push", folder, "org/drafter", "--revision", "v2", "--yes")
    assert again.code == 0 and b"| chat | 2.50 |" in hub.files("org/drafter", "v2")["README.md"]
    assert AutoDrafter.from_pretrained("org/drafter", revision="v2").config.block_size == 4


def test_figures_of_other_weights_are_refused(dspark, hub, folder, tmp_path):
    from dspark_hf.data.cache.manifest import weights_digest

    drafter = AutoDrafter.from_pretrained(folder)
    row = {"task": "chat", "category": None, "cut": "3 of 9", "temperature": 0.0, "batch_size": 1, "way": "any",
           "tau": 2.5, "confidence": None}  # fmt: skip
    about = {"kind": "drafter", "drafter": "any", "weights": weights_digest(drafter)}
    settings = {"max_new_tokens": 8, "thinking": None}
    made = {"ways": {"any": about}, "tasks": [{"name": "chat"}], "dtype": "float32", "template": None,
            "settings": settings}  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"made_with": made, "rows": [row]}))
    outcome = dspark("push", folder, "org/drafter", "--evaluation", tmp_path / "run", "--yes")
    assert outcome.code == 0, outcome.err
    card = hub.files("org/drafter")["README.md"].decode()
    assert "| chat (3 of 9) | any |" in card and "name: chat (3 of 9), T = 0, any" in card
    # Trained on, and the figures that are kept in its folder are of what it was.
    with torch.no_grad():
        drafter.fc.weight += 1
    drafter.save_pretrained(folder)
    for options in ((), ("--evaluation", tmp_path / "run"), ("--dry-run",)):
        outcome = dspark("push", folder, "org/drafter", "--yes", *options)
        assert outcome.code == 2 and "The figures of 'run' are of other weights" in outcome.err
        assert f"and remove what {folder / 'evaluations'} keeps of others." in outcome.err
    shutil.rmtree(folder / "evaluations")
    assert dspark("push", folder, "org/drafter", "--dry-run").code == 0


def test_words_of_ones_own_are_pushed_as_they_are(dspark, hub, folder):
    (folder / "README.md").write_text("tau is 3")
    outcome = dspark("push", folder, "org/drafter", "--license", "mit", "--tag", "chat", "--yes")
    assert "not used, since they are words of a card: --license, --tag" in outcome.err
    assert "README.md was not written by this command: kept (--overwrite-card replaces it)" in outcome.err
    assert hub.files("org/drafter")["README.md"] == b"tau is 3"
    assert dspark("push", folder, "org/drafter", "--overwrite-card", "--yes").code == 0
    assert b"written by dspark_hf" in hub.files("org/drafter")["README.md"]


def test_a_dry_run_uploads_and_writes_nothing(dspark, hub, folder, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps({"tau": 2.5, "accepted_per_slot": [0.9, 0.5]}))
    (folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outcome = dspark("push", folder, "org/drafter", "--evaluation", tmp_path / "chat.json", "--dry-run")
    files = ["README.md", "acceptance.png", "config.json", "evaluations/chat.json", "model.safetensors"]
    assert outcome.out.split()[: len(files) + 1] == [*files, "---"]
    assert "stays here: notes.txt" in outcome.err and "| chat | 2.50 |" in outcome.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(folder.glob("evaluations")) and not hub.requests


@pytest.mark.parametrize("include_target", [False, True])
def test_a_composite_repository(dspark, hub, pushed_target, folder, include_target):
    (folder / "calibration.json").write_text(json.dumps({"temperatures": [1.0, 1.1, 1.2, 1.3]}))
    (folder / "README.md").write_text("my notes")
    options = ["--include-target"] if include_target else []
    outcome = dspark("push", folder, "org/tiny-DSpark", "--target", pushed_target, "--yes", *options)
    assert outcome.code == 0, outcome.err
    files = hub.files("org/tiny-DSpark")
    assert ("model.safetensors" in files) == include_target
    assert {"tokenizer.json", "dspark/calibration.json", "dspark/model.safetensors"} <= set(files)
    assert files["dspark/README.md"] == b"my notes"
    text = files["README.md"].decode()
    assert "`dspark/calibration.json` has one temperature a slot (1, 1.1, 1.2, 1.3)" in text
    assert ("weights are loaded from its own repository" in text) != include_target
    model = DSparkForCausalLM.from_pretrained("org/tiny-DSpark")
    assert model.drafter.config.block_size == 4
    assert model.name_or_path == ("org/tiny-DSpark" if include_target else pushed_target)


def test_a_target_of_this_machine(dspark, hub, folder, tiny_target_dir):
    refused = dspark("push", folder, "org/tiny-DSpark", "--target", tiny_target_dir, "--yes")
    assert (refused.code, hub.requests) == (2, [])
    assert "is no Hub repository that others could load. Add --include-target" in refused.err
    named = dspark(
        "push", folder, "org/tiny-DSpark", "--target", tiny_target_dir, "--base-model", "org/tiny-target", "--yes"
    )
    assert named.code == 0, named.err
    config = json.loads(hub.files("org/tiny-DSpark")["config.json"])
    assert config["base_model_name_or_path"] == "org/tiny-target"


def test_refusals_come_before_any_upload(dspark, hub, folder, pushed_target, tmp_path):
    hub.requests.clear()
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ((folder, "org/x", "--include-target"), "say which target with --target"),
        ((folder, "org/x", "--evaluation", tmp_path / "none.json"), "There is no evaluation at"),
        ((tmp_path / "nothing", "org/x"), "There is no folder"),
        ((empty, "org/x"), "There is no config.json in"),
    ):
        outcome = dspark("push", *arguments, "--yes")
        assert outcome.code == 2 and message in outcome.err
    assert not hub.requests
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"target_name_or_path": "org/Someone-Else"}))
    outcome = dspark("push", folder, "org/x", "--target", pushed_target, "--yes")
    assert outcome.code == 2 and "This drafter was made for org/Someone-Else" in outcome.err
    assert ("model", "org/x") not in hub.repos


def test_a_token_that_may_not_write(dspark, hub, folder, monkeypatch):
    hub.log_in(monkeypatch, READ_TOKEN)
    outcome = dspark("push", folder, "org/drafter", "--yes")
    assert outcome.code == 2 and "The token may not write there" in outcome.err


def test_help_shows_examples(dspark):
    assert "dspark push runs/first org/Model-DSpark --target org/Model" in dspark("push", "--help").out
