"""A trainer that stops where a number is not finite, before it reaches the weights or a checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer import SCALER_NAME
from transformers.trainer_utils import TrainOutput

from dspark_hf.ops.finite import is_finite

from .checkpoints import WholeCheckpoints, last_checkpoint

# Tokens by which a row is told.
_SHOWN_TOKENS = 8


class FiniteTraining(WholeCheckpoints):
    """A trainer that learns and saves nothing that is not finite.

    Losses are looked at once before each optimizer step, which reads one number from the device and, with several
    processes, adds one up; transformers' own filter (`logging_nan_inf_filter`) reads one per batch. Weights are looked
    at before they are saved and after they are loaded, with the optimizer's state.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._losses: list[tuple[Tensor, Tensor]] = []
        self.add_callback(_BeforeStep(self))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._losses.append((loss.isfinite().logical_not(), inputs["input_ids"]))
        return loss

    def check_losses(self) -> None:
        """Look at the losses of the step that is about to be taken.

        Raises:
            `ValueError`: If one is not finite in any process; in all of them.
        """
        losses, self._losses = self._losses, []
        num_bad = torch.stack([is_bad for is_bad, _ in losses]).sum().float()
        if not self._sum_over_processes(num_bad):
            return
        bad = [number for number, (is_bad, _) in enumerate(losses) if is_bad]
        rows = [ids[:_SHOWN_TOKENS].tolist() for number in bad for ids in losses[number][1]]
        where = f"process {self.accelerator.process_index}, batch {[number + 1 for number in bad]} of {len(losses)}"
        found = gather_object([f"{where}, in rows that begin with {rows}"] if bad else [])
        folder = getattr(self.train_dataset, "folder", None)
        raise ValueError(
            f"The loss of step {self.state.global_step + 1} is not finite ({'; '.join(found)}"
            f"{'' if folder is None else f', of the cache {folder}'}). Nothing of it was learned; "
            f"{self._last_whole()}. Look at what these rows hold (TargetCache.verify() reads a cache), run the target "
            f"in bfloat16 or float32, or lower learning_rate={self.args.learning_rate}."
        )

    def check_weights(self, what: str) -> None:
        """Check that all weights are finite, in all processes.

        Args:
            what (`str`): What is looked at, as the message begins.

        Raises:
            `ValueError`: If one is not in any of them; in every process.
        """
        bad = [
            name for name, weight in self.model.named_parameters() if weight.requires_grad and not _is_whole(weight)
        ]
        if self._sum_over_processes(torch.tensor(float(len(bad)))):
            raise ValueError(
                f"{what} has weights that are not finite, e.g. {bad[:3]}; {self._last_whole()}. Lower "
                f"learning_rate={self.args.learning_rate}, or go on from an earlier checkpoint."
            )

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As [`~trainers.checkpoints.WholeCheckpoints.train`].

        Raises:
            `ValueError`: Also if a loss or a weight is not finite.
        """
        self._losses = []
        output = super().train(*args, **kwargs)
        self.check_weights(f"The drafter of step {self.state.global_step}")
        return output

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_weights(f"The drafter of step {self.state.global_step} is not saved: it")
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except RuntimeError as error:
            raise ValueError(
                f"The weights of the checkpoint {resume_from_checkpoint} are not this drafter's: {error}"
            ) from error
        self.check_weights(f"The checkpoint {resume_from_checkpoint}")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _of_this_run(f"The optimizer's state in the checkpoint {checkpoint}"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        parts = {"optimizer": self.optimizer.state_dict(), "scheduler": self.lr_scheduler.state_dict()}
        bad = [name for name, part in parts.items() if not all(map(_is_whole, _numbers(part)))]
        if self._sum_over_processes(torch.tensor(float(len(bad)))):
            raise ValueError(
                f"The checkpoint {checkpoint} has numbers that are not finite in the state of "
                f"{' and '.join(bad) or 'the optimizer'}. Resume from an earlier one."
            )

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _of_this_run(f"The scaler's state, {checkpoint}/{SCALER_NAME},"):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        name = "rng_state.pth" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}.pth"
        way_out = "Without that file the run goes on with other random numbers."
        with _of_this_run(f"The random state, {checkpoint}/{name},", way_out):
            super()._load_rng_state(checkpoint)

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor.to(self.args.device), reduction="sum")

    def _last_whole(self) -> str:
        found = last_checkpoint(self.args.output_dir)
        return "no checkpoint has been saved" if found is None else f"the last checkpoint is kept: {Path(found).name}"


class _BeforeStep(TrainerCallback):
    def __init__(self, trainer: FiniteTraining):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.check_losses()


@contextmanager
def _of_this_run(what: str, way_out: str = "") -> Iterator[None]:
    """Tell which state of a checkpoint it is that cannot be loaded."""
    try:
        yield
    except (OSError, ImportError):
        raise
    # A state of another run, or one that is damaged, meets code that expects its own.
    except Exception as error:
        raise ValueError(
            f"{what} is not this run's: {type(error).__name__}: {error}. Resume with the arguments that it was made "
            f"with, or from another checkpoint. {way_out}".rstrip()
        ) from error


def _is_whole(value: Tensor | float) -> bool:
    if not isinstance(value, Tensor):
        return abs(value) < inf
    # Of a sharded tensor, the part that is here.
    return is_finite(value.to_local() if hasattr(value, "to_local") else value)


def _numbers(state: Any) -> Iterator[Tensor | float]:
    """Every tensor and number in nested containers."""
    if isinstance(state, Tensor | float):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _numbers(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _numbers(value)
