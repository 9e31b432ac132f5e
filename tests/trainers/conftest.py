"""A tiny target, text it wrote, and trainers for it."""

import pytest
import torch
from written_rows import make_target, write_rows

from dspark_hf import DraftTrainer, DraftTrainingArguments, DSparkModel


@pytest.fixture(scope="package")
def target():
    return make_target()


@pytest.fixture(scope="package")
def rows(target):
    return write_rows(target)


@pytest.fixture
def make_trainer(target):
    """`make_trainer(folder, rows, **fields and arguments)`: the same fresh drafter every time."""
    fields_of_drafter = ("markov_rank", "draft_vocab_size", "num_hidden_layers", "block_size")

    def make(
        folder, rows, *, eval_rows=None, callbacks=None, drafter=None, peft_config=None, target=target, **arguments
    ):
        fields = {name: arguments.pop(name) for name in fields_of_drafter if name in arguments}
        torch.manual_seed(2)
        if drafter is None:
            defaults = {"num_hidden_layers": 1, "block_size": 4, "markov_rank": 8, "num_anchors": 8}
            drafter = DSparkModel.from_target(target, **{**defaults, **fields})
        defaults = {"per_device_train_batch_size": 4, "disable_tqdm": True, "report_to": "none", "logging_steps": 1,
                    "save_strategy": "no", "max_steps": 4, "seed": 5, "num_eval_prompts": 0}  # fmt: skip
        extra = {} if peft_config is None else {"peft_config": peft_config}
        return DraftTrainer(drafter, target, DraftTrainingArguments(str(folder), **{**defaults, **arguments}),
                            train_dataset=rows, eval_dataset=eval_rows, callbacks=callbacks, **extra)  # fmt: skip

    return make


@pytest.fixture
def losses():
    """`losses(trainer)`: the losses it logged."""
    return lambda trainer: [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
