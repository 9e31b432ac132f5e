"""A DeepSeek-V4-shaped drafter is trained for such a target, saved flat, and drafts for it."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter, DSparkModel, TargetCache, build_target_cache

FOLDER = Path(__file__).parents[1] / "golden" / "v4_dspark"


@pytest.mark.parametrize("checkpoints_gradients", [False, True])
def test_it_trains_and_drafts(make_trainer, losses, tmp_path, checkpoints_gradients):
    target = AutoModelForCausalLM.from_pretrained(FOLDER, index_topk=64).eval()
    generator = torch.Generator().manual_seed(0)
    # Text that says the same again and again is learned in a few steps.
    texts = [torch.randint(2, 180, (4,), generator=generator).repeat(8) for _ in range(4)]
    rows = [{"input_ids": text.tolist(), "loss_mask": [1] * 32} for text in texts]
    torch.manual_seed(0)
    fields = {"num_hidden_layers": 1, "target_layer_ids": [0, 1, 2], "n_routed_experts": 4, "block_size": 5}
    drafter = DSparkModel.from_target(target, family="deepseek_v4", markov_rank=8, num_anchors=8, **fields)
    trainer = make_trainer(tmp_path, rows, drafter=drafter, target=target, max_steps=30, learning_rate=5e-3,
                           ce_weight=1.0, tv_weight=0.0, activation_checkpointing=checkpoints_gradients)  # fmt: skip
    trainer.train()
    history = losses(trainer)
    assert history[-1] < 0.7 * history[0]
    experts = drafter.layers[0].mlp.experts.gate_up_proj
    assert experts.grad is None or torch.isfinite(experts.grad).all()
    drafter.save_pretrained(tmp_path / "drafter")
    again = AutoDrafter.from_pretrained(tmp_path / "drafter")
    assert again.config.target_layer_ids == [0, 1, 2] and again.config.decoder_config.n_routed_experts == 4
    ids = torch.tensor([rows[0]["input_ids"][:9]])
    plain = target.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(target.generate(ids, assistant_model=again, max_new_tokens=10, do_sample=False), plain)


@pytest.mark.parametrize("num_experts", [4, 0])
def test_states_of_a_cache_train_it_as_those_of_the_target_do(make_trainer, losses, tmp_path, num_experts):
    target = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(2, 180, (length,), generator=generator).tolist() for length in (30, 24, 18, 12)]
    rows = [{"input_ids": text, "loss_mask": [True] * len(text)} for text in texts]
    # The last layer is among the taps: a cache holds the mean of its raw streams, and the state behind the norm too.
    fields = {"target_layer_ids": [0, 2], "n_routed_experts": num_experts, "markov_rank": 8, "num_anchors": 8}
    build_target_cache(target, rows, tmp_path / "cache", target_layer_ids=[0, 2], dtype="fp32", batch_tokens=1)
    histories = []
    for name, source in (("online", rows), ("cached", TargetCache(tmp_path / "cache"))):
        torch.manual_seed(0)
        drafter = DSparkModel.from_target(target, family="deepseek_v4", num_hidden_layers=1, block_size=5, **fields)
        trainer = make_trainer(tmp_path / name, source, drafter=drafter, target=target, max_steps=4,
                               per_device_train_batch_size=1)  # fmt: skip
        trainer.train()
        histories.append(losses(trainer))
    assert len(histories[0]) == 4 and histories[0] == histories[1]


def test_a_stopped_run_goes_on(make_trainer, tmp_path):
    """transformers' trainer reads a checkpoint's config as one of no model."""
    target = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    rows = [{"input_ids": list(range(start, start + 20)), "loss_mask": [True] * 20} for start in range(2, 50, 8)]

    def train(folder, max_steps, **options):
        torch.manual_seed(0)
        fields = {"num_hidden_layers": 1, "target_layer_ids": [0, 2], "block_size": 5, "markov_rank": 8}
        drafter = DSparkModel.from_target(target, family="deepseek_v4", num_anchors=4, **fields)
        trainer = make_trainer(folder, rows, drafter=drafter, target=target, max_steps=max_steps, save_steps=2,
                               save_strategy="steps", lr_scheduler_type="constant", warmup_steps=0)  # fmt: skip
        trainer.train(**options)
        return drafter.state_dict()

    train(tmp_path / "stopped", 2)
    found = train(tmp_path / "stopped", 4, resume_from_checkpoint=True)
    expected = train(tmp_path / "whole", 4)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_an_adapter_fits_all_but_the_grouped_projections(make_trainer, tmp_path):
    target = AutoModelForCausalLM.from_pretrained(FOLDER, index_topk=64).eval()
    rows = [{"input_ids": list(range(start, start + 20)), "loss_mask": [True] * 20} for start in range(2, 50, 8)]
    drafter = AutoDrafter.from_pretrained(FOLDER)
    trainer = make_trainer(tmp_path / "run", rows, drafter=drafter, target=target, max_steps=1,
                           peft_config=LoraConfig(r=2, init_lora_weights=False))  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    adapted = AutoDrafter.from_pretrained(tmp_path / "adapter")
    names = {name for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert any("q_b_proj" in name for name in names) and not any("o_a_proj" in name for name in names)
    ids = torch.tensor([rows[0]["input_ids"][:9]])
    plain = target.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(target.generate(ids, assistant_model=adapted, max_new_tokens=8, do_sample=False), plain)
    with pytest.raises(ValueError, match="target_modules name o_a_proj, which takes its inputs in groups"):
        make_trainer(tmp_path / "other", rows, drafter=AutoDrafter.from_pretrained(FOLDER), target=target,
                     peft_config=LoraConfig(r=2, target_modules=["o_a_proj"]))  # fmt: skip
