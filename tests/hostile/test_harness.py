"""Every field of every file that others may have written, with every odd value: refused by name, or harmless.

Each case ends in one of three ways: refused (a plain `ValueError` that names the file), harmless (what was read
works), or left over, which no case may be. `python -m pytest tests/hostile/test_harness.py -s` shows the counts.
"""

import json
import random
import shutil
from collections import Counter

import pytest
import torch
import yaml

from dspark_hf import AutoDrafter, DraftTrainingArguments, TargetCache
from dspark_hf.cli.terminal import visible
from dspark_hf.data.cache.records import read_record, write_record
from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.regeneration.answer_file import FailedFile
from dspark_hf.publishing.folder import DrafterFolder
from dspark_hf.trainers.checkpoints import check_checkpoint
from dspark_hf.trainers.recipes.recipe import load_recipe

DEEP: list = []
for _ in range(300):
    DEEP = [DEEP]
ODD = [
    None, True, False, -1, 0, 1, 7, 2**31, 2**70, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", "x", "7",
    "../x", "/etc/passwd", "\x1b[2J", "[/b]", "a\nb", "\x00", "\u202e", "x" * 10_000, [], [0], [None], ["x"],
    [-1, 10**9], [[]], {}, {"a": 1}, {"": {}}, DEEP,
]  # fmt: skip


class Outcomes:
    """Counts how cases end."""

    def __init__(self):
        self.counts, self.left_over = Counter(), []

    def take(self, do, file, field, value):
        try:
            do()
        except ValueError as error:
            text = str(error)
            if type(error) is not ValueError or str(file) not in text:
                self.left_over.append((str(field), repr(value)[:60], f"{type(error).__name__}: {text[:200]}"))
            self.counts["refused"] += 1
            self.counts["field named"] += str(field) in text
        except Exception as error:
            self.left_over.append((str(field), repr(value)[:60], f"{type(error).__name__}: {str(error)[:200]}"))
        else:
            self.counts["harmless"] += 1

    def check(self, name):
        print(f"\n{name}: {dict(self.counts)}, left over: {len(self.left_over)}")
        print(*self.left_over, sep="\n")
        assert not self.left_over
        assert self.counts["refused"] and self.counts["harmless"]


@pytest.fixture
def outcomes():
    return Outcomes()


def values_for(field, num=None):
    """Odd values for a field; some of them, the same ones every time, where trying all takes long."""
    return ODD if num is None else random.Random(field).sample(ODD, num)


@pytest.mark.parametrize("name", ["drafter", "adapter"])
def test_configs(outcomes, edited, whole, target, name):
    file = {"drafter": "config.json", "adapter": "adapter_config.json"}[name]
    fields = [*json.loads((whole / name / file).read_text()), "num_labels", "id2label", "label2id", "ttt_length",
              "dflash_config", "dspark_config", "speculators_model_type", "torch_dtype", "draft_vocab_size",
              "is_causal", "sliding_window", "rope_scaling", "quantization_config", "auto_map",
              "attn_implementation", "tie_word_embeddings", "pruned_heads"]  # fmt: skip
    prompt = torch.tensor([[1, 2, 3]])

    def use(folder):
        drafter = AutoDrafter.from_pretrained(folder)
        try:
            target.generate(prompt, assistant_model=drafter, max_new_tokens=2, do_sample=False)
        except ValueError as error:
            # What only target and drafter together show names both instead of a file.
            raise ValueError(f"{folder}: {error}") from error

    for field in dict.fromkeys(fields):
        for value in values_for(field, 6 if name == "drafter" else 2):
            folder = edited(name, file, {field: value})
            outcomes.take(lambda folder=folder: use(folder), folder, field, value)
    outcomes.check(file)


def test_folders_to_publish(outcomes, edited, whole):
    fields = json.loads((whole / "drafter" / "config.json").read_text())
    for field in fields:
        for value in values_for(field, 5):
            folder = edited("drafter", "config.json", {field: value})
            outcomes.take(lambda folder=folder: AutoDrafter.from_pretrained(folder), folder, field, value)
    for value in ODD:
        folder = edited("drafter", "config.json", {})
        index = {"metadata": {}, "weight_map": value}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for read in (DrafterFolder.read, AutoDrafter.from_pretrained):
            outcomes.take(lambda read=read, folder=folder: read(folder), folder, "weight_map", value)
        index["weight_map"] = {"fc.weight": value}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for read in (DrafterFolder.read, AutoDrafter.from_pretrained):
            outcomes.take(lambda read=read, folder=folder: read(folder), folder, "fc.weight", value)
    outcomes.check("folders and indexes")


@pytest.mark.parametrize("pattern", ["manifest.json", "rows-*.json"])
def test_caches(outcomes, edited, pattern):
    folder = edited("cache", "manifest.json", {})
    path = next(folder.glob(pattern))
    record = read_record(path)
    for field in [*record, "evil"]:
        for value in values_for(field, 8):
            write_record(path, record | {field: value})
            outcomes.take(lambda: TargetCache(folder).verify(), folder, field, value)
        write_record(path, {name: value for name, value in record.items() if name != field})
        outcomes.take(lambda: TargetCache(folder).verify(), folder, field, "(absent)")
    for text in ("", "[]", "7", "{", "[" * 10**5, '{"sha256": []}', "\xff"):
        path.write_text(text)
        outcomes.take(lambda: TargetCache(folder).verify(), folder, "(text)", text)
    outcomes.check(pattern)


def test_conversations(outcomes, tmp_path):
    path = tmp_path / "text.jsonl"
    message = {"role": "user", "content": "a"}
    answer = {"role": "assistant", "content": "b"}
    lines = [json.dumps(value) for value in ODD]
    for value in ODD:
        for column in ("messages", "conversations", "turns", "prompt", "complete", "thinking", "other"):
            lines.append(json.dumps({"messages": [message, answer], column: value}))
            lines.append(json.dumps({column: value}))
        for key in ("role", "content", "from", "value", "reasoning_content", "tool_calls"):
            lines.append(json.dumps({"messages": [{**message, key: value}, answer]}))
            lines.append(json.dumps({"conversations": [{key: value}]}))
            lines.append(json.dumps({"messages": [message, value]}))
    lines += ["{", "}", "{}{}", '{"messages": [', "NaN", "1" * 5000, '{"a": 1, "a": 2}', '"\\ud800"', "[" * 10**5]
    for line in lines:
        path.write_text(line + "\n", encoding="utf-8")
        outcomes.take(lambda: load_conversations(path), path, "line 1", line)
    outcomes.check("JSONL")


def test_recipes(outcomes, tmp_path, monkeypatch):
    # A recipe may write below the working folder only.
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    fields = ["target", "data", "num_synthetic", "openings", "held_out", "max_length", "keep_special_tokens",
              "features", "streaming", "cache", "start_from", "algorithm", "drafter", "lora", "training",
              "paper", "published", "estimate", "evil", "drafter.block_size", "drafter.num_hidden_layers",
              "training.learning_rate", "training.max_steps", "training.save_strategy", "training.num_anchors",
              "training.cache_budget",
              "training.optim", "training.lr_scheduler_kwargs", "training.seed"]  # fmt: skip

    def use():
        recipe = load_recipe(path)
        try:
            recipe.training_arguments()
            recipe.save(tmp_path / "saved.yaml")
        except ValueError as error:
            # The arguments are checked as a whole, and named as the trainer calls them.
            raise ValueError(f"{path}: {error}") from error

    for field in fields:
        for value in values_for(field, 8):
            content = {"training": {"output_dir": "out"}}
            section, _, name = field.partition(".")
            content[section] = {**content.get(section, {}), name: value} if name else value
            path.write_text(yaml.safe_dump(content), encoding="utf-8")
            outcomes.take(use, path, name or section, value)
    for text in ("", "[]", "7", "a: [", "a: &b [*b]", "&a [*a]", "target: &a {x: *a}", "? {a: 1}\n: 2",
                 "[" * 10**4, "{" * 10**4, "a: !!python/object:os.x {}", "\ttarget: x", "target: !!binary x",
                 "%YAML 9.9\n---\na"):  # fmt: skip
        path.write_text(text)
        outcomes.take(use, path, "(text)", text)
    outcomes.check("recipes")


def test_trainer_states(outcomes, whole, tmp_path):
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(whole / "drafter", folder)
    state = {"global_step": 2, "epoch": 0.5, "max_steps": 8, "log_history": [], "best_metric": None,
             "total_flos": 0.0, "stateful_callbacks": {}, "save_steps": 500, "num_train_epochs": 3,
             "is_world_process_zero": True}  # fmt: skip
    for field in [*state, "evil", "trial_params", "best_model_checkpoint"]:
        for value in ODD:
            (folder / "trainer_state.json").write_text(json.dumps(state | {field: value}))
            outcomes.take(lambda: check_checkpoint(folder), folder, field, value)
    outcomes.check("trainer_state.json")


def test_arguments_of_trainers(outcomes, tmp_path):
    fields = ["ce_weight", "slot_decay", "num_anchors", "loss_chunk_size", "muon_learning_rate", "num_eval_prompts",
              "eval_temperature", "cache_budget", "cache_dtype", "early_stopping_patience"]  # fmt: skip
    for field in fields:
        for value in [None, -1, 0, 1, 2**70, 0.5, 1e308, "x", "", [], {}]:
            outcomes.take(lambda f=field, v=value: DraftTrainingArguments(str(tmp_path), **{f: v}), "", field, value)
    outcomes.check("training arguments")


def test_messages_of_servers_and_models(tmp_path):
    failed = FailedFile(tmp_path / "out.jsonl", secret="0123456789")
    for value in ODD:
        failed.append([{"role": "user", "content": "a"}], ValueError(value, "0123456789"))
        assert "0123456789" not in failed.reason and len(failed.reason) < 600 and "\n" not in failed.reason
    for value in map(str, ODD):
        assert visible(visible(value)) == visible(value)
    lines = (tmp_path / "out.jsonl.failed.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(ODD) and all(json.loads(line) for line in lines)
