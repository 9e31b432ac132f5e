"""Which checkpoints were written whole: a process can be killed while it saves."""

import zipfile
from dataclasses import fields
from math import inf
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from dspark_hf.files import read_json
from dspark_hf.messages import shown
from dspark_hf.modeling.wrappers import unwrap

from .resuming import check_same_drafter
from .sole_run import sole_run

logger = logging.get_logger(__name__)


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in a `folder`, a trainer's `output_dir`, that was written whole, or None."""
    found = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if path.is_dir() and step.isdecimal():
            found.append((int(step), path))
    for _, path in sorted(found, reverse=True):
        if (reason := _damage(path)) is None:
            return str(path)
        logger.warning(f"The checkpoint {path} was not written whole ({reason}) and is passed over.")
    return None


def check_checkpoint(path: str | Path) -> None:
    """Check that the checkpoint at `path` was written whole.

    Raises:
        `ValueError`: If a part is missing or cut off; the message names it.
    """
    path = Path(path)
    if reason := _damage(path):
        raise ValueError(
            f"The checkpoint {path} was not written whole ({reason}): saving it was interrupted, or files were lost. "
            "Resume from an earlier one, or with resume_from_checkpoint=True from the newest that is whole."
        )


def _damage(path: Path) -> str | None:
    # The trainer writes its state after everything else, that of other processes included.
    try:
        state = read_json(path / TRAINER_STATE_NAME)
    except ValueError:
        return f"no readable {TRAINER_STATE_NAME}"
    if odd := _odd_field(state, path):
        return f"{TRAINER_STATE_NAME} has {odd}={shown(state.get(odd))}"
    for weights in path.glob("*.safetensors"):
        try:
            with safe_open(weights, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return f"{weights.name} cannot be read"
    for archive in (*path.glob("*.pt"), *path.glob("*.pth"), *path.glob("*.bin")):
        if not zipfile.is_zipfile(archive):
            return f"{archive.name} is cut off"
    return _lost_half(path)


def _lost_half(path: Path) -> str | None:
    """Of optimizer and schedule, which are saved together, the one that is missing: transformers begins both anew."""
    # Sharded states are folders, and DeepSpeed may keep the schedule in its own.
    has_optimizer = any(path.glob("optimizer*"))
    has_schedule = (path / "scheduler.pt").is_file()
    if has_schedule and not has_optimizer and not any(path.glob("global_step*")):
        return "no optimizer.pt beside scheduler.pt"
    return "no scheduler.pt beside the optimizer's state" if has_optimizer and not has_schedule else None


def _odd_field(state: dict[str, Any], path: Path) -> str | None:
    """A field of a trainer's state that no trainer writes so."""
    known = {field.name: field.type for field in fields(TrainerState)}
    for name, value in state.items():
        if name not in known or not _is_of(known[name], value, name):
            return name
    if not all(isinstance(entry, dict) for entry in state.get("log_history") or []):
        return "log_history"
    step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    if type(state.get("global_step", 0)) is not int or step.isdecimal() and state.get("global_step", 0) != int(step):
        return "global_step"
    return None


def _is_of(kind: Any, value: Any, name: str) -> bool:
    kinds = [get_origin(one) or one for one in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int | float):
        # Steps may be written as 500.0; how good the best was may be any number.
        return bool({int, float} & set(kinds)) and (name == "best_metric" or 0 <= value < inf)
    # What callbacks keep is a list in the class, and an object in the file.
    return isinstance(value, (*kinds, dict) if name == "stateful_callbacks" else tuple(kinds))


class WholeCheckpoints(Trainer):
    """A trainer that resumes only from checkpoints that were written whole."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As [`~transformers.Trainer.train`]; checkpoints whose saving was interrupted are not resumed from.

        Raises:
            `ValueError`: If the checkpoint is not whole or of another drafter, with `True` no whole one is there, or
                another run is writing to `output_dir`.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no whole checkpoint in {self.args.output_dir} to resume from; leave "
                    "resume_from_checkpoint out to start anew."
                )
        elif resume_from_checkpoint:
            check_checkpoint(resume_from_checkpoint)
        if resume_from_checkpoint:
            check_same_drafter(resume_from_checkpoint, unwrap(self.model).config)
        self._resumed_from = resume_from_checkpoint or None
        with sole_run(self.args.output_dir):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As [`~transformers.Trainer.set_initial_training_values`]; of a finished run that is resumed nothing is left.

        The loop looks whether it is over after a step, and so would make one more.
        """
        num_epochs, steps_per_epoch, *others, max_steps = super().set_initial_training_values(*args, **kwargs)
        if self._resumed_from is not None:
            state = read_json(Path(self._resumed_from) / TRAINER_STATE_NAME)
            step = int(state.get("global_step", 0))
            if step >= max_steps or self._has_stopped_early(state):
                num_epochs = step // steps_per_epoch  # those that have begun
                logger.warning(
                    f"The checkpoint {self._resumed_from} is the end of its run, of {step} steps: nothing is trained. "
                    "What is left, such as an evaluation, is done."
                )
        return num_epochs, steps_per_epoch, *others, max_steps

    def _has_stopped_early(self, state: dict[str, Any]) -> bool:
        """Whether a trainer's state has waited for better figures as long as this trainer would."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                kept = (state.get("stateful_callbacks") or {}).get(EarlyStoppingCallback.__name__)
                attributes = (kept.get("attributes") if isinstance(kept, dict) else None) or {}
                waited = attributes.get("early_stopping_patience_counter", 0)
                return isinstance(waited, int) and waited >= callback.early_stopping_patience
        return False

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A checkpoint counts as whole once its state is there, so that of an older run must not be.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what follows is the state, the mark of a whole checkpoint
