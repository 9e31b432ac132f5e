"""Files of others: pipes, devices, bombs, nesting and prepared links are refused, with the file named."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dspark_hf.data.cache.records import read_record
from dspark_hf.data.conversation_files import iterate_conversations, load_conversations
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


@pytest.fixture
def taken():
    """`taken()`: most bytes that Python and Arrow have held at once."""
    tracemalloc.start()
    before = pyarrow.default_memory_pool().max_memory()
    yield lambda: tracemalloc.get_traced_memory()[1] + pyarrow.default_memory_pool().max_memory() - before
    tracemalloc.stop()


def test_blanks_that_unpack_to_gigabytes_are_passed_over(tmp_path, taken):
    path = tmp_path / "array.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"[\n")
        for _ in range(256):
            file.write((b" " * 1023 + b"\n") * 1024)
        file.write(b'{"prompt": "a"}]')
    assert len(load_conversations(path)) == 1 and taken() < 2**25


def test_an_element_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "array.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'[{"prompt": "short"}, {"prompt": "')
        for _ in range(140):
            file.write(b"a" * 2**20)
    with pytest.raises(ValueError, match=f"{path} begins .* element 2: Unterminated.*or it has more than 64 MiB"):
        load_conversations(path)


def write_parquet(path, values, num_repeats, value_type=None):
    """One value, which is in the file once, over and over."""
    ids = pyarrow.array([0] * num_repeats, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(ids, pyarrow.array(values, value_type))
    if num_repeats > 1000:
        column = pyarrow.ListArray.from_arrays(pyarrow.array([0, num_repeats], pyarrow.int32()), column)
    parquet.write_table(pyarrow.table({"prompt": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 5000


def test_text_that_a_parquet_file_has_once_is_unpacked_in_parts(tmp_path, taken):
    path = tmp_path / "rows.parquet"
    write_parquet(path, ["a" * 2**22], 500)
    assert sum(1 for _ in iterate_conversations(path)) == 500 and taken() < 2**28


def test_rows_of_parquet_that_unpack_to_gigabytes_are_refused(tmp_path, taken):
    path = tmp_path / "rows.parquet"
    write_parquet(path, ["a" * 2**20], 5000)
    with pytest.raises(ValueError, match=f"{path}, row 1: A row may have 64 MiB"):
        load_conversations(path)
    write_parquet(path, [7], 10_000_000)
    with pytest.raises(ValueError, match=f"{path}, row 1: A row may have 64 MiB"):
        load_conversations(path)
    assert taken() < 2**29


def test_groups_of_rows_that_unpack_to_gigabytes_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    write_parquet(path, ["a"], 5000)
    monkeypatch.setattr("dspark_hf.data.parquet._LARGEST_GROUP", 2**15)
    with pytest.raises(ValueError, match=f"{path}: Row group 0 would take 0 MiB, and may take 0. Write .* fewer rows"):
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


def test_json_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match=f"There is no file {tmp_path / 'costs.json'}."):
        read_json(tmp_path / "costs.json")
