"""What a file was made with: versions of packages, and settings that must not change on the way."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .commands import hide_secrets
from .messages import cut, shown

_MOST_TOLD = 8


def installed_versions(*packages: str) -> dict[str, str | None]:
    """The installed version of each of `packages`, by name; `None` where one is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def command_line() -> str:
    """This process's command, as a shell takes it, without secrets.

    `python -m dspark_hf` is `dspark`, and a notebook's kernel is the notebook, as far as Jupyter tells its name.
    """
    program = Path(sys.argv[0])
    if program.name == "ipykernel_launcher.py":
        return Path(os.environ.get("JPY_SESSION_NAME", "a notebook")).name
    is_own = (program.parent.name, program.name) == ("dspark_hf", "__main__.py")
    return hide_secrets(shlex.join(["dspark" if is_own else program.name, *sys.argv[1:]]))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Settings that differ from `before` to `now`, in words; empty if none does."""
    told = [
        f"{cut(name)}: {shown(before.get(name))} before, {shown(now.get(name))} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    more = [f"and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else []
    return "; ".join([*told[:_MOST_TOLD], *more])


def processor_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
