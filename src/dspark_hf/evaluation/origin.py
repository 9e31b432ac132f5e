"""Results that can be traced: what ran, and where."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dspark_hf.provenance import command_line, installed_versions, processor_name

_PACKAGES = (
    "dspark_hf",
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "huggingface_hub",
    "gguf",
)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that shape a result; `None` where one is not installed."""
    return {"python": platform.python_version(), **installed_versions(*_PACKAGES)}


def machine(device: Any = None) -> dict[str, Any]:
    """Describe the hardware a result was made on.

    Args:
        device (`torch.device`, *optional*): Where the models lie.

    Returns:
        `dict` with the device and its name, the processor, its cores and the threads that torch uses.
    """
    import torch

    device = torch.device("cpu") if device is None else torch.device(device)
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def provenance(device: Any = None) -> dict[str, Any]:
    """Everything that is needed to make a result again: command, commit, versions, machine, time.

    Args:
        device (`torch.device`, *optional*): Where the models lie.
    """
    return {
        "command": command_line(),
        "commit": _git_commit(),
        "versions": versions(),
        "machine": machine(device),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """The commit of the source checkout, marked where files differ from it; `None` outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        # An installed copy may lie inside somebody else's repository, whose commit says nothing about this code.
        if not _git("ls-files", Path(__file__).name, folder=folder):
            return None
        commit = _git("rev-parse", "HEAD", folder=folder)
        changed = _git("status", "--porcelain", "--untracked-files=no", folder=folder)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str, folder: Path) -> str:
    result = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return result.stdout.strip()
