"""Which checkpoints were written whole: a process can be killed while it saves."""

import json
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

logger = logging.get_logger(__name__)


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in a folder, a trainer's `output_dir`, that was written whole, or None."""
    found = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if path.is_dir() and step.isdecimal():
            found.append((int(step), path))
    for _, path in sorted(found, reverse=True):
        try:
            check_checkpoint(path)
        except ValueError as error:
            logger.warning(f"{error} It is passed over.")
        else:
            return str(path)
    return None


def check_checkpoint(path: str | Path) -> None:
    """Check that a checkpoint was written whole.

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
        json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {TRAINER_STATE_NAME}"
    for weights in path.glob("*.safetensors"):
        try:
            with safe_open(weights, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return f"{weights.name} cannot be read"
    for archive in (*path.glob("*.pt"), *path.glob("*.pth"), *path.glob("*.bin")):
        if not zipfile.is_zipfile(archive):
            return f"{archive.name} is cut off"
    return None


class WholeCheckpoints(Trainer):
    """A trainer that resumes only from checkpoints that were written whole."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As [`~transformers.Trainer.train`]; checkpoints whose saving was interrupted are not resumed from.

        Raises:
            `ValueError`: If the checkpoint is not whole, or with `True` no whole one is there.
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
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A checkpoint counts as whole once its state is there, so that of an older run must not be.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what follows is the state, the mark of a whole checkpoint
