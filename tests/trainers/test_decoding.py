"""Evaluation by real decoding: held-out tau, the best checkpoint, early stopping, and what trackers see."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from dspark_hf import DraftTrainingArguments
from dspark_hf.trainers.decoding import decode_prompts, held_out_prompts

EVALUATION = {"num_eval_prompts": 4, "eval_max_new_tokens": 12, "per_device_eval_batch_size": 2}


def test_prompts_end_where_supervision_begins(rows):
    whole = {"input_ids": [5, 6, 7], "loss_mask": [True, True, True]}
    none = {"input_ids": [5, 6, 7], "loss_mask": [False, False, False]}
    assert held_out_prompts(rows, 2) == [row["input_ids"][:3] for row in rows[:2]]
    assert held_out_prompts(iter([whole, none, rows[0]]), 3) == [rows[0]["input_ids"][:3]]
    with pytest.raises(ValueError, match="num_eval_prompts=0"):
        held_out_prompts([whole, none], 2)


def test_tau_is_that_of_generate(make_trainer, target, rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, eval_rows=rows[:5], **EVALUATION)
    metrics = trainer.evaluate()
    drafter, emitted, accepted = trainer.model, [], []
    for row in rows[:4]:
        ids = torch.tensor([row["input_ids"][:3]])
        target.generate(ids, assistant_model=drafter, max_new_tokens=12, do_sample=False, pad_token_id=0)
        emitted += drafter.last_stats.emitted_lens
        accepted += [length >= 1 for length in drafter.last_stats.accepted_lens]
    assert metrics["eval_tau"] == pytest.approx(sum(emitted) / len(emitted))
    assert 0 <= metrics["eval_accept_rate_slot_1"] <= 1
    assert metrics["eval_accept_rate_slot_1"] == pytest.approx(sum(accepted) / len(accepted), abs=0.05)
    assert "eval_tau" not in make_trainer(tmp_path, rows, eval_rows=rows[:5]).evaluate()


def test_several_held_out_sets_are_told_apart(make_trainer, rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, eval_rows={"chat": rows[:2], "code": rows[2:4]}, **EVALUATION)
    metrics = trainer.evaluate()
    assert {"eval_chat_tau", "eval_code_tau", "eval_code_accept_rate_slot_1"} <= set(metrics)


def test_training_goes_on_as_if_nothing_was_decoded(make_trainer, target, rows, tmp_path):
    drafter = make_trainer(tmp_path, rows).model.eval()
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    prompts = [row["input_ids"][:3] for row in rows[:3]]
    sampled = [
        decode_prompts(target, drafter, prompts, max_new_tokens=8, batch_size=2, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    ]
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert sampled[0].emitted_lens == sampled[1].emitted_lens


class Spoil(TrainerCallback):
    """Ruins the drafter after its second step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step >= 2:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(-7)


class Tracker(TrainerCallback):
    """What any tracker of `report_to` is given."""

    def __init__(self):
        self.figures = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.figures |= logs


def test_best_checkpoint_is_kept_and_early_stopping_stops(make_trainer, rows, tmp_path):
    tracker = Tracker()
    trainer = make_trainer(
        tmp_path, rows[:2], eval_rows=rows[:2], **EVALUATION, callbacks=[Spoil(), tracker], max_steps=9,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=1,
        load_best_model_at_end=True, early_stopping_patience=2,
    )  # fmt: skip
    trainer.train()
    taus = [entry["eval_tau"] for entry in trainer.state.log_history if "eval_tau" in entry]
    best = taus.index(max(taus)) + 1
    # Two evaluations without a better one end it; of the checkpoints the best is among those that are left.
    assert trainer.args.metric_for_best_model == "eval_tau" and trainer.state.best_metric == max(taus)
    assert trainer.state.global_step == len(taus) == best + 2
    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trainer.model.state_dict().items())
    assert {"loss", "expected_tau", "tokens_per_second", "eta_seconds", "eval_tau", "eval_accept_rate_slot_1"} <= set(
        tracker.figures
    )
    assert tracker.figures["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_eval_prompts": -1}, "num_eval_prompts must not be negative"),
        ({"eval_max_new_tokens": 0}, "eval_max_new_tokens must be positive"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be positive"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be positive"),
        ({"early_stopping_patience": 0, "eval_strategy": "steps"}, "early_stopping_patience must be positive"),
        ({"early_stopping_patience": 2}, "eval_strategy is 'no'"),
        ({"metric_for_best_model": "eval_tau", "num_eval_prompts": 0}, "num_eval_prompts is 0"),
    ],
)
def test_bad_arguments(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        DraftTrainingArguments(str(tmp_path), **fields)


def test_best_is_judged_by_loss_where_nothing_is_decoded(tmp_path):
    arguments = DraftTrainingArguments(
        str(tmp_path), num_eval_prompts=0, early_stopping_patience=1, eval_strategy="epoch"
    )
    assert arguments.metric_for_best_model == "eval_loss" and arguments.greater_is_better is False
