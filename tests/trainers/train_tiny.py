"""Train a tiny drafter for a few steps and write losses and weights: run as a process of its own, or several.

python train_tiny.py FOLDER '{"max_steps": 8, ...}'
"""

import json
import os
import sys

import torch
from accelerate.utils import DistributedType
from datasets import IterableDataset
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_hf import DraftTrainer, DraftTrainingArguments, DSparkModel
from dspark_hf.processes import end_in_order


def main(folder: str, arguments: dict) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)  # fmt: skip
    target = LlamaForCausalLM(config).eval()
    # Rows of very different length: a mean of means would not be the mean over the global batch. Those of three tokens
    # have no anchor, so a process may have nothing to learn in a step.
    rows = [
        {"input_ids": torch.randint(2, 97, (length,)).tolist(), "loss_mask": [index >= 2 for index in range(length)]}
        for length in (30, 3, 7, 24, 3, 28, 3, 16) * 2
    ]
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, block_size=4, markov_rank=8)
    resume = arguments.pop("resume_from_checkpoint", None) == "True"
    streaming = arguments.pop("streaming", False)
    defaults = {"max_steps": 4, "num_anchors": 6, "logging_steps": 1, "seed": 3, "save_strategy": "no",
                "report_to": "none", "disable_tqdm": True, "num_eval_prompts": 4, "eval_max_new_tokens": 8,
                "per_device_eval_batch_size": 1, "learning_rate": 3e-3}  # fmt: skip
    training = DraftTrainingArguments(folder, **{**defaults, **arguments})
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate offers FSDP to accelerators only; torch shards over gloo just as well.
        training.distributed_state.distributed_type = DistributedType.MULTI_GPU
    train_rows = IterableDataset.from_generator(lambda: iter(rows)).shuffle(0, buffer_size=8) if streaming else rows
    trainer = DraftTrainer(drafter, target, training, train_dataset=train_rows, eval_dataset=rows[:8])
    trainer.train(resume_from_checkpoint=resume)
    figures = trainer.evaluate()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        results = {name: tensor.clone() for name, tensor in weights.items()}
        for name in ("loss", "expected_tau"):
            results[name] = torch.tensor([entry[name] for entry in history if name in entry])
        for name in ("eval_tau", "eval_accept_rate_slot_1", "eval_expected_tau"):
            results[name] = torch.tensor(figures[name])
        save_file(results, f"{folder}/result.safetensors")


if __name__ == "__main__":
    with end_in_order():
        main(sys.argv[1], json.loads(sys.argv[2]))
