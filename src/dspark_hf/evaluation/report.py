"""Results that can be traced: what ran, where, and a file that is whole or absent."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = ("dspark_hf", "torch", "transformers", "accelerate", "peft", "datasets", "huggingface_hub", "gguf")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that shape a result; `None` where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


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
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
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
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _git_commit(),
        "versions": versions(),
        "machine": machine(device),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_json(path: str | Path, result: dict[str, Any]) -> None:
    """Write a result so that the file is either whole or not there.

    Args:
        path (`str` or `Path`): The file; its folder is made where it is missing.
        result (`dict`): JSON-able.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        temp.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
