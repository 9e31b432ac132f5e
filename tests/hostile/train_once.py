"""Train a tiny drafter as a process of its own, or several: python train_once.py FOLDER '{"max_steps": 2, ...}'.

`nan_in_process` puts a NaN into that process's rows, `wait_for` holds the first step until that file exists. What came
is written to FOLDER-RANK.txt.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from dspark_hf import DraftTrainer, DraftTrainingArguments, DSparkModel
from dspark_hf.data.features import TargetFeatures, hold_features
from dspark_hf.processes import end_in_order


class Wait(TrainerCallback):
    def __init__(self, started: Path, go: Path | None):
        self.started, self.go = started, go

    def on_step_begin(self, args, state, control, **kwargs):
        self.started.touch()
        while self.go is not None and not self.go.exists():
            time.sleep(0.01)


def main(folder: str, arguments: dict) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4,
                         num_attention_heads=2, num_key_value_heads=2, eos_token_id=None)  # fmt: skip
    target = LlamaForCausalLM(config).eval()
    drafter = DSparkModel.from_target(
        target, num_hidden_layers=1, target_layer_ids=[1, 2], block_size=4, markov_rank=4
    )
    rows = [{"input_ids": list(range(start, start + 20)), "loss_mask": [True] * 20} for start in range(16)]
    rows = hold_features(TargetFeatures(target, [1, 2]), rows, progress=False)
    nan_in_process, go = arguments.pop("nan_in_process", None), arguments.pop("wait_for", None)
    defaults = {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "num_eval_prompts": 0, "save_steps": 1,
                "use_cpu": True, "per_device_train_batch_size": 4}  # fmt: skip
    args = DraftTrainingArguments(folder, **{**defaults, **arguments})
    rank = args.process_index
    if nan_in_process == rank:
        for row in rows:
            row["features"][3, 3] = float("nan")
    callbacks = [Wait(Path(f"{folder}-started"), None if go is None else Path(go))]
    trainer = DraftTrainer(drafter, target, args, train_dataset=rows, callbacks=callbacks)
    try:
        trainer.train()
        said = "finished"
    except ValueError as error:
        said = f"ValueError: {error}"
    Path(f"{folder}-{rank}.txt").write_text(said)


if __name__ == "__main__":
    with end_in_order():
        main(sys.argv[1], json.loads(sys.argv[2]))
