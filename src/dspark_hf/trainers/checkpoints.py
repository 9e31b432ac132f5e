"""Which checkpoints were written whole: a process can be killed while it saves."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
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
