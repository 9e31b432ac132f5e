"""Files of others: pipes, devices, bombs, nesting and prepared links are refused, with the file named."""

import gzip
import json
import os
from pathlib import Path

import pytest

from dspark_hf.data.cache.records import read_record
from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.regeneration.synthesis import load_openings
from dspark_hf.files import read_json, write_json, write_text
from dspark_hf.trainers.recipes.recipe import load_recipe

READERS = {
    "JSON": read_json,
    "record": read_record,
    "conversations": load_conversations,
    "recipe": load_recipe,
    "openings": load_openings,
}
NEEDS_UNIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are of Unix")


@NEEDS_UNIX
@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_refused(name, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{path} is no regular file. Name a file on the disk"):
            READERS[name](path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"prompt": ' + "[" * 100_000], ids=lambda text: text[:12]
)
@pytest.mark.parametrize("name", ["JSON", "record", "conversations", "recipe"])
def test_nesting_is_refused(name, text, tmp_path):
    path = tmp_path / "deep"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path}.* nested too deeply"):
        READERS[name](path)


@pytest.mark.parametrize("name", READERS)
def test_bytes_that_are_no_text_are_refused(name, tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match=f"{path}.*(no text in UTF-8|can't decode)"):
        READERS[name](path)


@pytest.mark.parametrize("name", ["JSON", "record", "recipe", "openings"])
def test_huge_files_are_refused_before_memory_is_taken(name, tmp_path):
    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match=f"{path} has more than 64 MiB"):
        READERS[name](path)


def test_a_line_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"prompt": "short"}\n{"prompt": "')
        for _ in range(72):
            file.write(b"a" * 2**20)
    with pytest.raises(ValueError, match=f"{path}, line 2: A line may have 64 MiB"):
        load_conversations(path)


@pytest.mark.parametrize(
    "text", ["a: 2001-99-99", "a: !!int ''", "a: !!bool x", "a: !!float x", "? [1]\n: 2", "a: !!python/name:os.x"]
)
def test_yaml_that_python_cannot_make_is_refused(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path} is not readable YAML"):
        load_recipe(path)


def test_files_that_training_arguments_name_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text("training: {output_dir: out, accelerator_config: missing.json}")
    with pytest.raises(ValueError, match="A training argument of the recipe cannot be used: .*missing.json"):
        load_recipe(path).training_arguments()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links need rights elsewhere")
def test_what_others_prepared_beside_a_file_is_left_alone(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    # Whatever name is drawn, somebody has put a link there first.
    monkeypatch.setattr("dspark_hf.files.secrets.token_hex", lambda length: "drawn")
    (tmp_path / "x.json.drawn.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_json(tmp_path / "x.json", {"a": 1})
    assert victim.read_text() == "mine" and not (tmp_path / "x.json").exists()
    # The name is drawn, not told from the process.
    monkeypatch.undo()
    (tmp_path / f"x.json.{os.getpid()}.tmp").symlink_to(victim)
    write_json(tmp_path / "x.json", {"a": 1})
    assert victim.read_text() == "mine" and json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert not (tmp_path / "x.json").is_symlink()


def test_new_files_have_the_usual_rights(tmp_path):
    write_text(tmp_path / "ours", "text")
    (tmp_path / "plain").write_text("text")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
