"""Recipes: what they may say, what command lines change, and what their estimates are."""

from pathlib import Path

import pytest
import torch
import transformers
import yaml
from packaging import version
from transformers import AutoConfig

from dspark_hf import DSparkConfig, DSparkModel
from dspark_hf.trainers.recipes.estimate import estimate_training, saved_bytes
from dspark_hf.trainers.recipes.recipe import Recipe, load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "examples" / "recipes").glob("*.yaml"))


@pytest.fixture
def path(tmp_path):
    """A small recipe."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "target: org/Model\ndata: text.jsonl\ndrafter: {block_size: 5, num_hidden_layers: 2}\n"
        "training: {output_dir: out, learning_rate: 6e-4, bf16: false, logging_steps: 5}\n"
        "estimate: {tokens: 1000, target: {model_type: llama}}\n"
    )
    return path


def test_a_family_on_the_command_line_brings_its_fields(path):
    for overrides in (
        ["drafter.family=deepseek_v4", "n_routed_experts=0"],
        ["n_routed_experts=0", "family=deepseek_v4"],
    ):
        assert load_recipe(path, overrides).drafter["n_routed_experts"] == 0
    with pytest.raises(ValueError, match="Unknown key 'n_routed_experts'"):
        load_recipe(path, ["n_routed_experts=0"])


def test_overrides_reach_every_section(path):
    overrides = ["target=other", "block_size=3", "drafter.target_layer_ids=[1, 2]", "max_steps=7",
                 "training.learning_rate=1e-3", "save_strategy=no", "data=[a.jsonl, b.jsonl]",
                 "lr_scheduler_kwargs={num_cycles: 1}", "save_total_limit=null"]  # fmt: skip
    recipe = load_recipe(path, overrides)
    assert recipe.target == "other" and recipe.data == ["a.jsonl", "b.jsonl"]
    assert recipe.drafter == {"block_size": 3, "num_hidden_layers": 2, "target_layer_ids": [1, 2]}
    arguments = recipe.training_arguments()
    assert (arguments.max_steps, arguments.learning_rate, arguments.logging_steps) == (7, 1e-3, 5)
    assert arguments.save_strategy == "no" and arguments.bf16 is False
    assert arguments.lr_scheduler_kwargs == {"num_cycles": 1} and arguments.save_total_limit is None
    # The sizes it states are those of its own target.
    assert recipe.estimate == {"tokens": 1000}
    assert load_recipe(None, ["output_dir=x"]).training_arguments().output_dir == "x"


def test_what_is_saved_is_the_same_recipe(path, tmp_path):
    recipe = load_recipe(path, ["learning_rate=1e-5"])
    recipe.save(tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["leaning_rate=1"], "Unknown key 'leaning_rate'. Did you mean 'training.learning_rate'?"),
        (["training.block_size=1"], "Unknown key 'training.block_size'."),
        (["drafter.blocksize=1"], "Did you mean 'drafter.block_size'?"),
        (["taget=a"], "Did you mean 'target'?"),
        (["qqqqqqqq=a"], "Unknown key 'qqqqqqqq'. Keys are the fields of Recipe"),
        (["max_steps"], "Expected key=value, got 'max_steps'"),
        (["data=[a"], "The value in 'data=\\[a' is not readable YAML"),
        (["target_dtype=int8"], "target_dtype must be one of auto, bfloat16, float16, float32, got 'int8'"),
        (["features=disk"], "features must be 'online' or 'memory', got 'disk'"),
        (["cache=there", "features=memory"], "cache='there' holds the features already; leave features='memory' out"),
        (["streaming=no"], "streaming must be true or false, got 'no'"),
        (["streaming=true", "features=memory"], "streaming reads files that are there .*'memory'"),
        (["streaming=true", "cache=there"], "streaming reads files that are there .*cache='there' out"),
        (["streaming=true", "data=null"], r"streaming reads files that are there \(data=None\)"),
        (["algorithm=medusa"], "algorithm must be one of dspark, dflash, eagle3, got 'medusa'"),
        (["held_out=0"], "held_out must be a positive whole number, got 0"),
        (["start_from=org/Drafter"], "brings a drafter with all its fields"),
        (["lora={r: 4}"], "name it with start_from"),
        (["training=fast"], "training must hold keys and values, got 'fast'"),
        (["training={max_stepps: 3}"], "the command line: unknown key 'training.max_stepps'. Did you mean"),
        (["lora={q: 4}", "start_from=org/Drafter"], "the command line: unknown key 'lora.q'"),
        (["data=[]"], r"data must name one file or more, got \[\]"),
        (["data=3"], "data must name one file or more, got 3"),
        (["data=[3]"], r"data must name one file or more, got \[3\]"),
        (["target="], "target must be text, got None"),
        (["cache=7"], "cache must be text, got 7"),
        (["start_from=''"], "start_from must be text, got ''"),
        (["published=3"], "published must hold names and figures, got 3"),
    ],
)
def test_bad_overrides(path, overrides, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("targte: a", r"unknown key 'targte'. Did you mean 'target'\?"),
        (
            "drafter: {num_hiden_layers: 2}",
            r"'drafter.num_hiden_layers'. Did you mean 'drafter.num_hidden_layers'\?",
        ),
        ("drafter: [1]", "drafter must hold keys and values"),
        ("- a", "must hold keys and values, got list"),
        ("a: [", "is not readable YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="Cannot read the recipe"):
        load_recipe(tmp_path / "absent.yaml")


def test_empty_sections_are_as_if_they_were_not_there(tmp_path):
    (tmp_path / "empty.yaml").write_text("target: org/Model\ndrafter:\ntraining:\nlora:\nestimate:\n")
    recipe = load_recipe(tmp_path / "empty.yaml", ["target=org/Other", "output_dir=out"])
    assert recipe == Recipe(target="org/Other", training={"output_dir": "out"})
    assert load_recipe(tmp_path / "empty.yaml", ["drafter=null"]).drafter == {}


def test_bad_training_arguments(path):
    with pytest.raises(ValueError, match="argument --max_steps.*: invalid int value: 'ten'"):
        load_recipe(path, ["max_steps=ten"]).training_arguments()
    with pytest.raises(ValueError, match="streaming does not know how much text there is: give training.max_steps"):
        load_recipe(path, ["streaming=true"]).training_arguments()
    assert load_recipe(path, ["streaming=true", "max_steps=9"]).training_arguments().max_steps == 9
    for output_dir in ({}, {"output_dir": ""}, {"output_dir": None}):
        with pytest.raises(ValueError, match="give training.output_dir"):
            Recipe(training=output_dir).training_arguments()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_state_what_is_computed(path):
    recipe = load_recipe(path)
    estimate = estimate_training(recipe)
    stated = recipe.estimate["cache_gb"]
    assert set(stated) == {"bf16", "fp8", "int8", "int4"}
    assert stated == pytest.approx({dtype: estimate.cache[dtype] / 1e9 for dtype in stated}, rel=0.01)
    # What DeepSeek-V4's experts keep for their gradients is less before 5.24.
    close = 0.1 if version.parse(transformers.__version__) < version.parse("5.24") else 0.01
    assert recipe.estimate["memory_gb"] == pytest.approx(estimate.memory / 1e9, rel=close)
    assert recipe.paper and recipe.data or recipe.target == "embedded"
    # Published for the reference's block size.
    assert recipe.published is None or (recipe.drafter["block_size"] == 7 and "Table 1" in recipe.paper)
    # bf16 is refused where nothing computes in it; the rest must be usable anywhere.
    recipe.training_arguments()


def test_every_target_has_a_recipe():
    assert {path.stem for path in RECIPES} >= {
        "qwen3-4b", "qwen3-8b", "qwen3-14b", "gemma4-12b", "llama-3.1-8b", "deepseek-v4-flash", "deepseek-v4-pro",
        "embedded"
    }  # fmt: skip


def test_the_embedded_recipe_makes_the_shipped_drafter():
    root = Path(__file__).resolve().parents[2] / "examples" / "drafters" / "smollm2-135m-dspark"
    shipped = DSparkConfig.from_pretrained(root)
    recipe = load_recipe(next(path for path in RECIPES if path.stem == "embedded"))
    config = DSparkConfig.from_target(AutoConfig.for_model(**recipe.estimate["target"]), **recipe.drafter)
    for name in ("block_size", "target_layer_ids", "markov_rank", "draft_vocab_size", "num_hidden_layers"):
        assert getattr(config, name) == getattr(shipped, name), name
    assert config.decoder_config.intermediate_size == shipped.decoder_config.intermediate_size


V4 = {"hidden_size": 64, "moe_intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "head_dim": 32,
      "q_lora_rank": 16, "o_lora_rank": 16, "o_groups": 2, "hc_mult": 2, "sliding_window": 16, "index_n_heads": 2,
      "index_head_dim": 16, "num_experts_per_tok": 2, "vocab_size": 300}  # fmt: skip
QWEN3 = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300}  # fmt: skip


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize(
    ("family", "sizes", "fields"),
    [("qwen3", QWEN3, {}), ("deepseek_v4", V4, {"n_routed_experts": 0}), ("deepseek_v4", V4, {"n_routed_experts": 4})],
    ids=["qwen3", "dense V4", "V4 with experts"],
)
def test_counted_activations_are_those_of_a_real_pass(family, sizes, fields, is_checkpointed):
    target = AutoConfig.for_model(family, **sizes)
    fields = {"num_hidden_layers": 3, "markov_rank": 8, "block_size": 4, **fields}
    config = DSparkConfig.from_target(target, family=family, **fields)
    # As one that is loaded: what a release keeps in float32 stays so.
    model = DSparkModel._from_config(config, own_embeddings=True, dtype=torch.bfloat16).train()
    model.embed_tokens.requires_grad_(False)
    if is_checkpointed:
        model.activation_checkpointing_enable()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(
            torch.zeros(2, 96, dtype=torch.int64),
            torch.zeros(2, 96, model.fc.in_features, dtype=torch.bfloat16),
            torch.full((2, 24), 40),
            torch.ones(2, 24, dtype=torch.bool),
        )
    real = sum(size for size, _ in sizes.values())
    assert saved_bytes(DSparkModel, config, 2, 96, 24, is_checkpointed) == pytest.approx(real, rel=0.1)


def test_estimates_follow_the_recipe(path):
    sizes = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
             "vocab_size": 300, "intermediate_size": 128}  # fmt: skip
    recipe = load_recipe(path, [f"estimate.target={yaml.safe_dump(sizes, default_flow_style=True).strip()}"])
    online = estimate_training(recipe)
    recipe.features = "memory"
    assert estimate_training(recipe) == online  # held-out prompts are decoded
    recipe.training["num_eval_prompts"] = 0
    held = estimate_training(recipe)
    assert held.target == 2 * 2 * 300 * 64 < online.target
    # What a cache takes besides the states: 4 bytes of an id and 1 of the mask.
    assert online.cache["bf16"] == online.cache_per_token["bf16"] * 1000 == (2 * 64 * (3 + 1) + 5) * 1000
    assert online.cache["fp8"] == ((64 + 4) * (3 + 1) + 5) * 1000 and online.cache["int4"] < online.cache["fp8"]
    recipe.training["activation_checkpointing"] = True
    # What is left of two layers, and one of them again.
    assert held.activations / 2 < estimate_training(recipe).activations < 0.7 * held.activations
    assert held.memory == held.drafter + held.target + held.activations + held.batch + held.loss
    with pytest.raises(ValueError, match="estimate.target"):
        estimate_training(Recipe())


def test_an_estimate_tells_what_a_large_vocabulary_costs():
    target = {"model_type": "llama", "vocab_size": 262_144, "hidden_size": 64, "num_hidden_layers": 6,
              "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
    recipe = Recipe(drafter={"num_hidden_layers": 1}, max_length=64, estimate={"target": target})
    (hint,) = (note for note in estimate_training(recipe).notes if "draft_vocab_size" in note)
    assert "for 262,144 tokens: draft_vocab_size=32768 would leave" in hint
    recipe.drafter["draft_vocab_size"] = 32768
    notes = estimate_training(recipe).notes
    assert not any("would leave" in note for note in notes)
    assert any("vLLM will not serve" in note and "rows of a reduced draft vocabulary" in note for note in notes)
