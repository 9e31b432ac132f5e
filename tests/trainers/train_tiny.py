"""Train a tiny drafter for a few steps and write losses and weights: run by test_processes.py, also under torchrun."""

import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_hf import DraftTrainer, DraftTrainingArguments, DSparkModel


def main(folder: str, batch_size: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)  # fmt: skip
    target = LlamaForCausalLM(config).eval()
    # Rows of very different length: a mean of means would not be the mean over the global batch.
    rows = [
        {"input_ids": torch.randint(2, 97, (length,)).tolist(), "loss_mask": [index >= 2 for index in range(length)]}
        for length in (30, 6, 7, 24, 5, 28, 9, 16) * 2
    ]
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, block_size=4, markov_rank=8)
    arguments = DraftTrainingArguments(
        folder, per_device_train_batch_size=batch_size, max_steps=4, num_anchors=6, logging_steps=1, seed=3,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = DraftTrainer(drafter, target, arguments, train_dataset=rows)
    trainer.train()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        taus = [entry["expected_tau"] for entry in trainer.state.log_history if "expected_tau" in entry]
        results = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
        results |= {"losses": torch.tensor(losses), "taus": torch.tensor(taus)}
        save_file(results, f"{folder}/result.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
