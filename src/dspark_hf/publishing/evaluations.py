"""What a drafter reached, kept beside its weights: the figures of a benchmark file and how they were made."""

import math
import os
import re
from pathlib import Path, PurePath
from typing import Any

from dspark_hf.files import read_json, write_json

from .folder import EVALUATIONS

_KEPT = (
    "tau",
    "num_prompts",
    "num_rounds",
    "accepted_per_slot",
    "accepted_per_slot_given_previous",
    "reliability",
    "ratio",
    "settings",
    "dtype",
)


def add_evaluation(folder: str | os.PathLike, file: str | os.PathLike) -> Path:
    """Put the figures of a benchmark into a drafter's folder, where its card finds them.

    Settings, command, commit and machine go along; single calls and places on this machine do not.

    Args:
        folder (`str` or `os.PathLike`): The drafter's folder.
        file (`str` or `os.PathLike`): What `dspark bench generate --json FILE` wrote.

    Returns:
        `Path`: The file in the folder, of the same name.

    Raises:
        `ValueError`: If the file holds no such figures.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"There is no evaluation at {file}; write one with `dspark bench generate --json {file}`.")
    result = read_json(file)
    tau = result.get("tau")
    if not isinstance(tau, int | float) or not math.isfinite(tau):
        raise ValueError(f"{file} holds no tau; give a file that `dspark bench generate --json` wrote.")
    record = {key: result[key] for key in _KEPT if result.get(key) is not None}
    if "data" in result:
        record["data"] = PurePath(str(result["data"])).name
    provenance = result.get("provenance") or {}
    machine = provenance.get("machine") or {}
    machine = {key: machine.get(key) for key in ("device_name", "cpu_count", "threads")}
    record["provenance"] = {
        "command": shorten_command(provenance.get("command") or "") or None,
        "commit": provenance.get("commit"),
        "versions": provenance.get("versions"),
        "machine": machine,
        "time": provenance.get("time"),
    }
    path = Path(folder) / EVALUATIONS / f"{file.stem}.json"
    write_json(path, record)
    return path


def shorten_command(command: str) -> str:
    """A command line without secrets and without folders of this machine: they tell others nothing."""
    secret = r"(?:token|password|secret|api[_-]?key)"
    # After an option, or a key of a recipe.
    command = re.sub(rf"(--?[\w-]*{secret} |[\w.-]*{secret}=)\S+", r"\1***", command, flags=re.IGNORECASE)
    command = re.sub(r"\bhf_\w{8,}", "***", command)
    return re.sub(r"(?<![\w.:/~-])[~.]{0,2}/(?:[^\s/'\"]+/)*([^\s/'\"]+)/?", r"\1", command)


def describe(record: dict[str, Any], name: str) -> dict[str, str]:
    """The cells of an evaluation's row in the card's table."""
    settings = record.get("settings", {})
    temperature = settings.get("temperature")
    ratio = record.get("ratio") or {}
    # Against the fastest dtype that plain generation has, where that was measured.
    fair = ratio.get("median_to_fastest_plain", ratio.get("median"))
    return {
        "data": name if record.get("data") is None else f"{name} ({record['data']})",
        "temperature": "" if temperature is None else ("greedy" if temperature == 0 else f"T = {temperature:g}"),
        "prompts": str(record.get("num_prompts", "")),
        "new tokens": str(settings.get("max_new_tokens", "")),
        "dtype": record.get("dtype", ""),
        "tau": f"{record['tau']:.2f}",
        "speed": "" if fair is None else f"{fair:.2f}x",
    }
