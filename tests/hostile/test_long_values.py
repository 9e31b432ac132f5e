"""A value of others is quoted at a length that can be read, whatever its own."""

import json

import pytest
import yaml

from dspark_hf import AutoDrafter, TargetCache
from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.generation.lengths.cost_files import check_cost, load_cost
from dspark_hf.publishing.folder import DrafterFolder
from dspark_hf.publishing.records import is_number
from dspark_hf.serving.server.requests import check_body
from dspark_hf.trainers.checkpoints import check_checkpoint
from dspark_hf.trainers.recipes.recipe import load_recipe

LONG = ["x" * 10_000, [7] * 2_000, {"x" * 10_000: 1}, ["x" * 10_000], 10**4000]
MOST = 1200


def told(do):
    """How long the error is that comes of it, and its beginning; none where there is none."""
    try:
        do()
    except ValueError as error:
        return (len(str(error)), str(error)[:300]) if len(str(error)) > MOST else None
    return None


@pytest.mark.parametrize(
    ("name", "file", "reads"),
    [
        ("drafter", "config.json", [AutoDrafter.from_pretrained, DrafterFolder.read]),
        ("adapter", "adapter_config.json", [AutoDrafter.from_pretrained]),
        ("cache", "manifest.json", [lambda folder: TargetCache(folder).verify()]),
        ("cache", "rows-*.json", [lambda folder: TargetCache(folder).verify()]),
    ],
)
def test_files_of_folders(edited, whole, name, file, reads):
    fields = json.loads(next((whole / name).glob(file)).read_text())
    more = ["dtype", "projector_type", "speculators_model_type", "dflash_config", "markov_head_type", "layer_types"]
    found = {}
    for index, field in enumerate([*fields, *more]):
        for value in {0, index % len(LONG)} if name != "adapter" else {0}:
            folder = edited(name, file, {field: LONG[value]})
            for read in reads:
                if (error := told(lambda read=read, folder=folder: read(folder))) is not None:
                    found[field] = error
    assert not found


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__)
def test_other_files(edited, tmp_path, value, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    folder = edited("drafter", "config.json", {})
    for name, content in {
        "calibration.json": {"temperatures": value},
        "model.safetensors.index.json": {"weight_map": value},
        "training.json": {"data": [value, value], "command": 7, "arguments": value},
        "trainer_state.json": {"global_step": value},
    }.items():
        (folder / name).write_text(json.dumps(content))
        for read in (DrafterFolder.read, AutoDrafter.from_pretrained, check_checkpoint):
            if (error := told(lambda read=read: read(folder))) is not None:
                found[name] = error
        (folder / name).unlink()
    path = tmp_path / "recipe.yaml"
    for field in ("target", "data", "num_synthetic", "features", "cache", "algorithm", "drafter", "training", "paper",
                  "published", "estimate", "streaming", "start_from", "training.output_dir", "training.optim",
                  "training.report_to", "training.cache_budget", "drafter.block_size"):  # fmt: skip
        content = {"training": {"output_dir": "out"}}
        section, _, name = field.partition(".")
        content[section] = {**content.get(section, {}), name: value} if name else value
        path.write_text(yaml.safe_dump(content))
        if (error := told(lambda: load_recipe(path).training_arguments())) is not None:
            found[field] = error
    path.write_text(yaml.safe_dump({str(value): 1}))
    if (error := told(lambda: load_recipe(path))) is not None:
        found["recipe"] = error
    path = tmp_path / "text.jsonl"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for line in ({"messages": [{"role": value, "content": "a"}]}, {"messages": value}, {"prompt": value},
                 {"conversations": [{"from": value, "value": value}]}, {"messages": talk, "complete": value},
                 {"messages": talk, "thinking": value}, {"messages": talk, "reasoning_effort": value}):  # fmt: skip
        path.write_text(json.dumps(line))
        if (error := told(lambda: load_conversations(path))) is not None:
            found[str(line)[:40]] = error
    assert not found


def test_numbers_that_no_float_can_be():
    for read in (is_number, lambda value: check_body({"messages": [], "temperature": value}, False)):
        for value in (10**400, -(10**400)):
            try:
                assert not read(value)
            except ValueError as error:
                assert "temperature must be a number from" in str(error)


def test_tables_of_costs(tmp_path):
    table = {"tokens": [1], "contexts": [1], "verify_seconds": [[1.0]], "rows": [1], "draft_seconds": [1.0]}
    path = tmp_path / "costs.json"
    found = {}
    for value in LONG:
        for field in (*table, "made_for", "x" * 10_000):
            path.write_text(json.dumps({**table, field: value}))
            if (error := told(lambda: load_cost(path))) is not None:
                found[field[:20]] = error
        path.write_text(json.dumps({"sample_batch_tokens": [1], "sample_steps_per_sec": [value]}))
        if (error := told(lambda: load_cost(path))) is not None:
            found["sample"] = error
        path.write_text(json.dumps({**table, "made_for": {f"{'x' * 1000}{index}": value for index in range(50)}}))
        with pytest.raises(ValueError, match="and 42 more") as caught:
            check_cost(load_cost(path), {})
        assert len(str(caught.value)) < 3000
    assert not found


FIELDS = (
    "seed",
    "stream",
    "model",
    "messages",
    "prompt",
    "stop",
    "logit_bias",
    "tools",
    "n",
    "max_tokens",
    "temperature",
)


@pytest.mark.parametrize("field", FIELDS)
def test_requests(field):
    for value in LONG:
        assert told(lambda value=value: check_body({"model": "x", "messages": [], field: value}, False)) is None
