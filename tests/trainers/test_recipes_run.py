"""Every shipped recipe, followed for a step with a tiny target of its family that has as many layers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dspark_hf import AutoDrafter
from dspark_hf.trainers.recipes.recipe import load_recipe
from dspark_hf.trainers.recipes.run import train_drafter

RECIPES = sorted((Path(__file__).resolve().parents[2] / "examples" / "recipes").glob("*.yaml"))
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
         "vocab_size": 260, "eos_token_id": 257, "pad_token_id": 256, "bos_token_id": None}  # fmt: skip
OF_FAMILY = {
    "gemma4_unified_text": {"global_head_dim": 16},
    "deepseek_v4": {"q_lora_rank": 8, "moe_intermediate_size": 8, "num_experts_per_tok": 2, "n_routed_experts": 4,
                    "o_groups": 2, "o_lora_rank": 4, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64,
                    "hc_mult": 2, "sliding_window": 16},
}  # fmt: skip
SHORT = ["max_length=48", "held_out=2", "max_steps=1", "per_device_train_batch_size=2", "num_anchors=4",
         "gradient_accumulation_steps=1", "markov_rank=4", "report_to=none", "disable_tqdm=true",
         "eval_max_new_tokens=3", "compile_loss=null", "openings=null"]  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_trains(path, tmp_path, tiny_tokenizer):
    shipped = load_recipe(path)
    sizes = shipped.estimate["target"]
    sizes |= SMALL | OF_FAMILY.get(sizes["model_type"], {})
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes)).eval()
    data = tmp_path / "text.jsonl"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "and the answer to it"}]
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(10)))
    overrides = [*SHORT, f"data=[{data}]", f"output_dir={tmp_path / 'out'}"]
    if shipped.training.get("num_eval_prompts") != 0:
        overrides.append("num_eval_prompts=1")
    if shipped.cache is not None:
        overrides.append(f"cache={tmp_path / 'cache'}")
    for name, value in (("mask_token_id", 258), ("draft_vocab_size", 200), *SMALL.items()):
        if name in shipped.drafter:
            overrides.append(f"drafter.{name}={value}")
    recipe = load_recipe(path, overrides)
    trainer, metrics = train_drafter(recipe, target, tiny_tokenizer)
    assert trainer.state.global_step == 1 and metrics["eval_loss"] > 0
    config = AutoDrafter.from_pretrained(tmp_path / "out").config
    for name in ("target_layer_ids", "block_size", "num_hidden_layers"):
        assert getattr(config, name) == recipe.drafter.get(name, getattr(config, name)), name
    assert config.num_target_layers == target.config.num_hidden_layers and config.num_hidden_layers >= 2
