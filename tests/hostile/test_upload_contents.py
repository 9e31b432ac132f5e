"""What is in the files of an upload, how they are called, and that they stay as they were looked at."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hub_server import WRITE_TOKEN
from peft import LoraConfig, get_peft_model

from dspark_hf import AutoDrafter
from dspark_hf.publishing import CardFacts, add_evaluation, push_folder, write_training_record
from dspark_hf.trainers.adapters import save_base_config


@pytest.fixture
def folder(tmp_path, tiny_drafter_dir):
    """A drafter with everything that belongs to it."""
    folder = Path(shutil.copytree(tiny_drafter_dir, tmp_path / "run"))
    (folder / "calibration.json").write_text(json.dumps({"temperatures": [1.0] * 4}))
    for name in ("generation_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "LICENSE").write_text("Do as you like.")
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "chat.json").write_text(json.dumps({"tau": 2.0}))
    write_training_record(folder, command="dspark train")
    return folder


BYTES = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (BYTES, r"'caf\\xe9.json' is not UTF-8, as those on the Hub are"),
        ("a\nb", r"'a\\nb.json' has characters that cannot be seen"),
        ("a\x1b[2J", r"'a\\x1b.2J.json' has characters that cannot be seen"),
        ("a\u202eb", "has characters that cannot be seen"),
        ("x" * 230, "has 235 bytes, more than 230"),
        ("\u00e9" * 113, "has 231 bytes, more than 230"),
    ],
    ids=ascii,
)
def test_names_that_other_machines_cannot_have(hub, folder, dspark, tmp_path, name, wrong):
    file = tmp_path / f"{name}.json"
    file.write_text('{"tau": 2.0}')
    outcome = dspark("push", folder, "org/run", "--dry-run", "--evaluation", file)
    assert outcome.code == 2 and "Traceback" not in outcome.err and "Rename it" in outcome.err
    shutil.copy(file, folder / "evaluations")
    with pytest.raises(ValueError, match=f"In {folder}/evaluations the name b.*{wrong}. Rename it") as caught:
        push_folder(folder, "org/run")
    assert len(str(caught.value)) < 400 and not hub.requests
    outcome = dspark("push", folder, "org/run", "--dry-run")
    assert outcome.code == 2 and "Traceback" not in outcome.err and "Rename it" in outcome.err


def test_a_file_in_place_of_evaluations(hub, folder, dspark, tmp_path):
    shutil.rmtree(folder / "evaluations")
    (folder / "evaluations").write_text("mine")
    (tmp_path / "chat.json").write_text('{"tau": 2.0}')
    for put in (lambda: push_folder(folder, "org/run"), lambda: add_evaluation(folder, tmp_path / "chat.json")):
        with pytest.raises(ValueError, match="evaluations is no folder, which a drafter's evaluations are kept in"):
            put()
    outcome = dspark("push", folder, "org/run", "--yes", "--evaluation", tmp_path / "chat.json")
    assert outcome.code == 2 and "Traceback" not in outcome.err and not hub.requests


TOKEN = "hf_" + "aB3" * 12


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "target_name_or_path", f"https://me:{TOKEN}@host/x"),
        ("generation_config.json", "_from_model_config", TOKEN),
        ("calibration.json", "made_by", "https://me:pw@host/x"),
        ("training.json", "note", "sk-proj-abcdefghij0123456789"),
        ("evaluations/chat.json", "dtype", TOKEN),
        ("tokenizer.json", "note", WRITE_TOKEN),
        ("LICENSE", None, f"mine, {TOKEN}"),
        ("README.md", None, f"git clone https://me:{TOKEN}@host/x"),
    ],
)
def test_secrets_are_refused_whatever_field_they_are_in(hub, folder, dspark, file, field, value):
    path = folder / file
    if field is None:
        path.write_text(value)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    place = "line 1" if field is None else f"{field}, line .*"
    with pytest.raises(ValueError, match=rf"^{file} \({place}\) holds .*nothing was uploaded") as caught:
        push_folder(folder, "org/run", tokenizer=True)
    assert value not in str(caught.value) and not hub.requests
    outcome = dspark("push", folder, "org/run", "--dry-run", "--tokenizer")
    assert outcome.code == 2 and "nothing was uploaded" in outcome.err and TOKEN not in outcome.err + outcome.out


def test_secrets_in_names_and_in_what_a_card_is_told_are_refused(hub, folder, dspark):
    for option in ("--tag", "--license", "--dataset"):
        for way in ("--yes", "--dry-run"):
            outcome = dspark("push", folder, "org/run", option, TOKEN, way)
            assert outcome.code == 2 and "README.md (line" in outcome.err and TOKEN not in outcome.err + outcome.out
    assert not hub.requests
    with pytest.raises(ValueError, match=r"^README.md \(line .*holds a token of the Hub"):
        push_folder(folder, "org/run", facts=CardFacts(tags=(TOKEN,)))
    (folder / "evaluations" / f"{TOKEN}.json").write_text('{"tau": 2.0}')
    with pytest.raises(ValueError, match="^The name of a file in evaluations holds a token of the Hub.*Rename it"):
        push_folder(folder, "org/run")
    assert set(hub.files("org/run")) == {".gitattributes"}


def test_records_of_a_training_have_names_only(tmp_path):
    data = ["org/data", "https://me:pw@host/text.jsonl?sig=abc", "/home/me/text.jsonl"]
    record = json.loads(write_training_record(tmp_path, data=data, command="dspark train").read_text())
    assert record["data"] == ["org/data", "https://***@host/text.jsonl?***", "text.jsonl"]


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_names_no_folder_of_this_machine(hub, tiny_drafter_dir, tmp_path):
    adapted = get_peft_model(AutoDrafter.from_pretrained(tiny_drafter_dir), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    save_base_config(adapted, str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "README.md").unlink()  # PEFT's own
    assert tiny_drafter_dir in (tmp_path / "adapter" / "adapter_config.json").read_text()
    push_folder(tmp_path / "adapter", "org/adapter", checkpoint="checkpoint-2")
    files = hub.files("org/adapter")
    assert not [name for name, content in files.items() if tiny_drafter_dir.encode() in content]
    for name in ("adapter_config.json", "checkpoint-2/adapter_config.json"):
        assert json.loads(files[name])["base_model_name_or_path"] == Path(tiny_drafter_dir).name


CHANGES = {
    "written": lambda path: path.write_bytes(b"private"),
    "longer": lambda path: path.write_bytes(path.read_bytes() * 2),
    "removed": Path.unlink,
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
}


@pytest.mark.parametrize(
    ("name", "stage"),
    [("config.json", "/repos/create"), ("LICENSE", "/objects/batch"), ("model.safetensors", "/objects/batch")],
)
@pytest.mark.parametrize("how", CHANGES)
def test_what_changes_while_it_is_sent_is_not_pushed(hub, folder, monkeypatch, how, name, stage):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    changed = []

    def change(method, path):
        if stage in path and not changed:
            changed.append(path)
            CHANGES[how](folder / name)

    hub.intercept = change
    with pytest.raises(ValueError, match=f"^{name} was changed or removed while it was about to be sent"):
        push_folder(folder, "org/run")
    assert changed and set(hub.files("org/run")) == {".gitattributes"}
    assert not any("/commit/" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "config.json"])
def test_what_changes_after_the_last_look_goes_as_it_was(hub, folder, name):
    (folder / "README.md").write_text("Mine.")
    before = (folder / name).read_bytes()

    def change(method, path):
        if "/validate-yaml" in path or "/commit/" in path:
            (folder / name).write_text(TOKEN)

    hub.intercept = change
    push_folder(folder, "org/run")
    assert hub.files("org/run")[name] == before and (folder / name).read_text() == TOKEN
