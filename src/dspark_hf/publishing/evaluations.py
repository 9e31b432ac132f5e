"""What a drafter reached, kept beside its weights: the figures of a benchmark file and how they were made."""

import os
from pathlib import Path, PurePath
from typing import Any

from dspark_hf.files import read_json, write_json

from .commands import shorten_command
from .contents import EVALUATIONS
from .records import check_evaluation

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

    Args:
        folder (`str` or `os.PathLike`): The drafter's folder.
        file (`str` or `os.PathLike`): What `dspark bench generate --json FILE` wrote.

    Returns:
        `Path`: The file in the folder, of the same name.

    Raises:
        `ValueError`: If the file holds no such figures.
    """
    record = read_evaluation(file)
    path = Path(folder) / EVALUATIONS / f"{Path(file).stem}.json"
    write_json(path, record)
    return path


def read_evaluation(file: str | os.PathLike) -> dict[str, Any]:
    """The figures of a benchmark file that a card shows.

    Settings, command, commit and machine go along; single calls and places on this machine do not.

    Raises:
        `ValueError`: If the file holds no such figures.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"There is no evaluation at {file}; write one with `dspark bench generate --json {file}`.")
    result = read_json(file)
    check_evaluation(result, file)
    record = {key: result[key] for key in _KEPT if result.get(key) is not None}
    if result.get("data") is not None:
        record["data"] = PurePath(result["data"]).name
    provenance = result.get("provenance") or {}
    machine = provenance.get("machine") or {}
    record["provenance"] = {
        "command": shorten_command(provenance.get("command") or "") or None,
        "commit": provenance.get("commit"),
        "versions": provenance.get("versions"),
        "machine": {key: machine.get(key) for key in ("device_name", "cpu_count", "threads")},
        "time": provenance.get("time"),
    }
    return record


def describe(record: dict[str, Any], name: str) -> dict[str, str]:
    """The cells of an evaluation's row in the card's table."""
    settings = record.get("settings") or {}
    temperature = settings.get("temperature")
    ratio = record.get("ratio") or {}
    # Against the fastest dtype that plain generation has, where that was measured.
    fair = ratio.get("median_to_fastest_plain", ratio.get("median"))
    return {
        "data": name if record.get("data") is None else f"{name} ({record['data']})",
        "temperature": "" if temperature is None else ("greedy" if temperature == 0 else f"T = {temperature:g}"),
        "prompts": _known(record.get("num_prompts")),
        "new tokens": _known(settings.get("max_new_tokens")),
        "dtype": _known(record.get("dtype")),
        "tau": f"{record['tau']:.2f}",
        "speed": "" if fair is None else f"{fair:.2f}x",
    }


def _known(value: Any) -> str:
    return "" if value is None else str(value)
