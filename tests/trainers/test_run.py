"""From a recipe to a folder: text, training, evaluation, saving, going on."""

import json
import runpy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from dspark_hf import AutoDrafter, DraftTrainer
from dspark_hf.cli.main import app
from dspark_hf.trainers.recipes.estimate import estimate_training
from dspark_hf.trainers.recipes.recipe import Recipe, load_recipe
from dspark_hf.trainers.recipes.run import train_drafter
from dspark_hf.trainers.rows import load_rows

DRAFTER = {"num_hidden_layers": 1, "block_size": 4, "markov_rank": 8, "draft_vocab_size": 200}
TRAINING = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True,
            "save_strategy": "steps", "save_steps": 2, "eval_max_new_tokens": 6, "num_eval_prompts": 2}  # fmt: skip


@pytest.fixture
def pair(tiny_target_dir):
    return LlamaForCausalLM.from_pretrained(tiny_target_dir), AutoTokenizer.from_pretrained(tiny_target_dir)


@pytest.fixture
def data(tmp_path):
    """A file of conversations."""
    path = tmp_path / "text.jsonl"
    conversations = [
        {"messages": [{"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": "abcdefgh"}]}
        for index in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, conversations)))
    return path


@pytest.mark.parametrize("options", [["--log-norm"], []], ids=["log_norm", "without"])
def test_a_recipe_trains_from_what_the_cache_command_built(pair, data, tmp_path, tiny_target_dir, options):
    folder = tmp_path / "cache"
    taps = ["--tap", "0", "--tap", "2", "--target-dtype", "float32", "--max-length", "64"]
    command = ["cache", "--data", str(data), "--out", str(folder), "--target", tiny_target_dir, *taps]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("rows-*")}
    training = {**TRAINING, "output_dir": str(tmp_path / "out"), "num_eval_prompts": 0}
    fields = {**DRAFTER, "target_layer_ids": [0, 2]}
    recipe = Recipe(data=str(data), cache=str(folder), max_length=64, drafter=fields, training=training)
    trainer, _ = train_drafter(recipe, *pair)
    assert len(trainer.train_dataset) == 10 and len(trainer.eval_dataset) == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("rows-*")} == before


@pytest.mark.parametrize("features", ["online", "memory", "cache"])
def test_a_recipe_is_followed_and_gone_on_with(pair, data, tmp_path, features, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    training = {**TRAINING, "output_dir": str(out)}
    source = {"cache": str(tmp_path / "cache")} if features == "cache" else {"features": features}
    recipe = Recipe(data=str(data), **source, max_length=64, drafter=DRAFTER, training=training)
    trainer, metrics = train_drafter(recipe, *pair)
    assert isinstance(trainer, DraftTrainer) and metrics["eval_tau"] >= 1
    assert len(trainer.train_dataset) == 10 and len(trainer.eval_dataset) == 2
    drafter = AutoDrafter.from_pretrained(out)
    assert drafter.dtype == torch.bfloat16 and drafter.config.draft_vocab_size == 200
    assert json.loads((out / "eval_results.json").read_text())["eval_tau"] == metrics["eval_tau"]
    again = load_recipe(out / "recipe.yaml")
    assert again == recipe
    with pytest.raises(ValueError, match=r"holds a run already, with checkpoint-2.*--resume"):
        train_drafter(again, *pair)
    again.training["max_steps"] = 3
    assert train_drafter(again, *pair, resume=True)[0].state.global_step == 3
    again.training |= {"max_steps": 4, "resume_from_checkpoint": True}
    assert train_drafter(again, *pair)[0].state.global_step == 4
    again.training["resume_from_checkpoint"] = str(out / "checkpoint-2")
    assert train_drafter(again, *pair)[0].state.global_step == 4


def test_a_recipe_may_stream(pair, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    recipe = Recipe(data=str(data), streaming=True, held_out=3, max_length=64, drafter=DRAFTER,
                    training={**TRAINING, "output_dir": str(out)})  # fmt: skip
    trainer, metrics = train_drafter(recipe, *pair)
    assert trainer.state.global_step == 2 and len(trainer.eval_dataset) == 3 and metrics["eval_tau"] >= 1
    held_out = [row["input_ids"] for row in trainer.eval_dataset]
    trained = [row["input_ids"] for row in islice(trainer.train_dataset, 9)]
    assert len({*map(tuple, held_out), *map(tuple, trained)}) == 12
    # The vocabulary is counted on the stream: what answers use is in it.
    assert trainer.model.t2d[torch.tensor(pair[1]("abcdefgh")["input_ids"])].all()
    assert load_recipe(out / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("algorithm", "fields"), [("dflash", {"block_size": 4}), ("eagle3", {"ttt_length": 3})], ids=["dflash", "eagle3"]
)
def test_other_algorithms(pair, data, tmp_path, algorithm, fields):
    training = {**TRAINING, "output_dir": str(tmp_path / "out")}
    recipe = Recipe(data=str(data), algorithm=algorithm, max_length=64, drafter=fields, training=training)
    if algorithm == "dflash":
        # Nothing needs the target any more: it may leave the device.
        recipe = replace(recipe, features="memory", training={**training, "num_eval_prompts": 0})
    assert estimate_training(recipe, pair[0].config).activations > 0
    metrics = train_drafter(recipe, *pair)[1]
    assert metrics["eval_expected_tau"] >= 1 and ("eval_tau" in metrics) == (algorithm == "eagle3")
    assert type(AutoDrafter.from_pretrained(tmp_path / "out")) is recipe.drafter_cls


def test_a_drafter_is_adapted(pair, data, tmp_path, tiny_drafter_dir):
    recipe = Recipe(data=[str(data)], start_from=tiny_drafter_dir, lora={"r": 2}, max_length=64,
                    training={**TRAINING, "output_dir": str(tmp_path / "out")})  # fmt: skip
    with pytest.raises(ValueError, match="pass that drafter"):
        train_drafter(recipe, *pair)
    train_drafter(recipe, *pair, drafter=AutoDrafter.from_pretrained(tiny_drafter_dir))
    adapted = AutoDrafter.from_pretrained(tmp_path / "out")
    target, tokenizer = pair
    inputs = tokenizer("question", return_tensors="pt")
    plain = target.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(target.generate(**inputs, max_new_tokens=8, do_sample=False, assistant_model=adapted), plain)


def test_conversations_without_answers_are_named(pair, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}))
    with pytest.raises(ValueError, match="None of the 1 conversations"):
        load_rows([str(path)], pair[1], 64)


def run_example(monkeypatch, arguments: str) -> None:
    monkeypatch.setattr("sys.argv", f"train_drafter.py {arguments}".split())
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "train_drafter.py"), run_name="__main__")


def test_the_example_script_trains_and_goes_on(data, tmp_path, tiny_target_dir, monkeypatch, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    common = f"""--target {tiny_target_dir} --data {data} --max_length 60 --held_out 2 --max_steps 2
        --per_device_train_batch_size 2 --num_anchors 4 --learning_rate 1e-3 --bf16 --seed 1 --report_to none
        --disable_tqdm true --eval_max_new_tokens 4"""
    shape = """--num_hidden_layers 1 --intermediate_size 24 --target_layer_ids 0 2 --markov_rank 4
        --draft_vocab_size 100 --block_size 5"""
    run_example(monkeypatch, f"{common} {shape} --output_dir {first}")
    drafter = AutoDrafter.from_pretrained(first)
    config = drafter.config
    assert (config.block_size, config.draft_vocab_size, config.target_layer_ids) == (5, 100, [0, 2])
    assert "eval_tau" in capsys.readouterr().out

    with pytest.raises(ValueError, match=r"brings a drafter with all its fields.*\['block_size'\]"):
        run_example(monkeypatch, f"{common} --block_size 4 --drafter {first} --output_dir {second}")
    run_example(monkeypatch, f"{common} --drafter {first} --output_dir {second} --save_strategy steps --save_steps 1")
    after = AutoDrafter.from_pretrained(second)
    assert after.config.to_diff_dict() == config.to_diff_dict()
    assert torch.equal(after.d2t, drafter.d2t)
    weights = drafter.state_dict()
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in after.state_dict().items())
    # Two small steps stay near where the first run ended, which a fresh drafter is not.
    assert torch.allclose(after.fc.weight.float(), drafter.fc.weight.float(), atol=5e-3)
    assert AutoDrafter.from_pretrained(second / "checkpoint-1").dtype == torch.float32


def test_a_run_goes_on_as_it_was_begun(pair, data, tmp_path, caplog):
    out = tmp_path / "out"
    recipe = Recipe(data=str(data), max_length=64, drafter=DRAFTER, training={**TRAINING, "output_dir": str(out)})
    train_drafter(recipe, *pair)

    def resumed(**changed):
        training = {**recipe.training, "max_steps": 3, **changed.pop("training", {})}
        return train_drafter(replace(recipe, training=training, **changed), *pair, resume=True)

    lines = data.read_text().splitlines()
    data.write_text("\n".join(lines[:6]))
    with pytest.raises(ValueError, match=r"begun otherwise .data: '12 conv.* before, '6 conv.* now"):
        resumed()
    data.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="learning_rate: 0.0006 before, 0.001 now.*start_from=.*checkpoint-2"):
        resumed(training={"learning_rate": 1e-3})
    with pytest.raises(ValueError, match="another drafter .block_size: 4 before, 5 now"):
        resumed(drafter={**DRAFTER, "block_size": 5})
    with pytest.raises(ValueError, match="num_hidden_layers: 1 before, 2 now"):
        resumed(drafter={**DRAFTER, "num_hidden_layers": 2})
    caplog.clear()
    trainer = resumed(training={"logging_steps": 1})[0]
    assert trainer.state.global_step == 3
    assert "otherwise than it was begun: logging_steps: None before, 1 now; max_steps: 2 before, 3 now" in caplog.text


@pytest.mark.parametrize(("eval_steps", "num_evaluations"), [(2, 1), (3, 1), (1, 2)])
def test_the_last_step_is_evaluated_once(pair, data, tmp_path, eval_steps, num_evaluations):
    training = {**TRAINING, "output_dir": str(tmp_path / "out"), "eval_strategy": "steps", "eval_steps": eval_steps}
    trainer, metrics = train_drafter(Recipe(data=str(data), max_length=64, drafter=DRAFTER, training=training), *pair)
    assert metrics["eval_tau"] >= 1
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == num_evaluations
