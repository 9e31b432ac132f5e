"""What a drafter reached, kept beside its weights: the figures of an evaluation and how they were made."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from dspark_hf.commands import shorten_command
from dspark_hf.files import read_json, write_json
from dspark_hf.messages import shown

from .contents import evaluations_folder, wrong_name
from .records import check_evaluation

_SUMMARY = "summary.json"
_METRIC = "mean tokens per round"
# Of a file without rows, as earlier versions wrote them.
_KEPT = (
    "tau",
    "num_prompts",
    "num_rounds",
    "accepted_per_slot",
    "accepted_per_slot_given_previous",
    "reliability",
    "lookup_share",
    "ratio",
    "settings",
    "dtype",
    "weights",
)
_KEPT_OF_ROW = (
    "task",
    "cut",
    "temperature",
    "batch_size",
    "way",
    "num_prompts",
    "num_rounds",
    "tau",
    "tau_interval",
    "accepted_per_slot",
    "accepted_per_slot_given_previous",
    "lookup_share",
    "ratio",
)


def add_evaluation(folder: str | os.PathLike, file: str | os.PathLike) -> Path:
    """Put the figures of an evaluation into a drafter's folder, where its card finds them.

    Args:
        folder (`str` or `os.PathLike`): The drafter's folder.
        file (`str` or `os.PathLike`): What `dspark evaluate --out` filled, or a file of its figures.

    Returns:
        `Path`: The file in the folder, of the same name.

    Raises:
        `ValueError`: If there are no figures of this drafter.
    """
    record = read_evaluation(file, Path(folder).resolve().name)
    path = evaluations_folder(Path(folder)) / f"{evaluation_name(file)}.json"
    write_json(path, record)
    return path


def evaluation_name(file: str | os.PathLike) -> str:
    """What an evaluation is called beside a drafter: as its folder, or as its file without the ending.

    Args:
        file (`str` or `os.PathLike`): The folder of a run, or a file of figures.

    Raises:
        `ValueError`: If that is no name for a file that others can see.
    """
    place = Path(file).resolve()
    name = place.name if place.is_dir() else place.stem
    wrong = "is hidden" if not name or name.startswith(".") else wrong_name(f"{name}.json")
    if wrong:
        raise ValueError(
            f"The evaluation in {place.parent} would be called {shown(os.fsencode(name))[1:]} in the repository; that "
            f"name {wrong}. Rename it."
        )
    return name


def read_evaluation(file: str | os.PathLike, drafter: str | None = None) -> dict[str, Any]:
    """The figures of an evaluation that a card shows.

    Settings, command, commit and machine go along; records of rounds and places on this machine do not.

    Args:
        file (`str` or `os.PathLike`): The folder of a run, or a file of figures.
        drafter (`str`, *optional*): The drafter's name, for runs of several.

    Raises:
        `ValueError`: If it holds no such figures, or those of several drafters and none of that name.
    """
    given, file = Path(file), Path(file)
    if file.is_dir():
        file = file / _SUMMARY
    if not file.is_file():
        remedy = f"make one with `dspark evaluate --out {given}`"
        if any(given.glob("records-*.jsonl")):
            remedy = f"`dspark report {given}` makes one of its records, once the run is whole"
        raise ValueError(f"There is no evaluation at {given}; {remedy}.")
    result = read_json(file)
    if isinstance(result.get("rows"), list) and isinstance(result.get("made_with"), dict):
        try:
            record = _of_run(result, drafter, file)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} is no whole summary of an evaluation ({type(error).__name__}: {error}). Remove it, and "
                f"`dspark report {given}` makes it again from the records."
            ) from error
        result = {**record, "provenance": result.get("provenance")}
    return public_evaluation(result, file)


def public_evaluation(record: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What of a record anybody may see: figures that are known here, and a command without tokens and places.

    Args:
        record (`Mapping[str, Any]`): The record, whoever wrote it.
        file (`Path`): Where it stands, for errors.

    Returns:
        `dict[str, Any]`: The same for what is public already.

    Raises:
        `ValueError`: If it holds no figures.
    """
    check_evaluation(dict(record), file)
    names = dict.fromkeys((*_KEPT, *_KEPT_OF_ROW, "prompting", "baseline"))
    kept = {key: record[key] for key in names if record.get(key) is not None}
    if isinstance(record.get("data"), str):
        kept["data"] = PurePath(record["data"]).name
    if isinstance(record.get("rows"), list):
        kept["rows"] = [{key: row[key] for key in _KEPT_OF_ROW if row.get(key) is not None} for row in record["rows"]]
    return {**kept, "provenance": _shortened(record.get("provenance") or {}, file)}


def describe(record: dict[str, Any], name: str) -> list[dict[str, str]]:
    """The cells of the rows of an evaluation's `record` in the card's table, where it goes by `name`."""
    settings = record.get("settings") or {}
    parts = record.get("rows") or [{**record, "temperature": settings.get("temperature")}]
    return [_cells(part, record, settings, name) for part in parts]


def metrics(record: dict[str, Any], name: str) -> list[tuple[str, str, float]]:
    """What was measured for the card's metadata: on what, the metric's name and its value.

    Args:
        record (`dict`): The evaluation.
        name (`str`): On what, where the record does not tell.
    """
    if not record.get("rows"):
        return [(name, f"{_METRIC}{_with_lookup(record)}", record["tau"])]
    least = min(row.get("batch_size") or 1 for row in record["rows"])
    rows = [row for row in record["rows"] if (row.get("batch_size") or 1) == least]
    return [
        (f"{_data(row)}, T = {row['temperature']:g}, {row['way']}", f"{_METRIC}{_with_lookup(row)}", row["tau"])
        for row in rows
    ]


def _of_run(result: Mapping[str, Any], drafter: str | None, file: Path) -> dict[str, Any]:
    """The rows of the drafter's ways, and the figures of all tasks together as those of the whole."""
    made, settings = result["made_with"], result["made_with"]["settings"]
    ways = {name: about for name, about in made["ways"].items() if about.get("kind") == "drafter"}
    names = sorted({about["drafter"] for about in ways.values()})
    if len(names) > 1:
        if drafter not in names:
            raise ValueError(
                f"{file} has figures of the drafters {', '.join(names)}, and none is called {shown(drafter)}. "
                "Evaluate this drafter alone, or name it so: dspark evaluate --drafter NAME=FOLDER."
            )
        ways = {name: about for name, about in ways.items() if about["drafter"] == drafter}
    rows = [row for row in result["rows"] if row["way"] in ways and row["category"] is None and row["tau"] is not None]
    if not rows:
        raise ValueError(f"{file} holds no tau of a drafter; evaluate one: dspark evaluate --drafter FOLDER.")
    joint = next((row for row in rows if row["task"] not in {task["name"] for task in made["tasks"]}), rows[0])
    record = {
        **{key: joint[key] for key in _KEPT_OF_ROW if joint.get(key) is not None},
        "data": joint["task"],
        "dtype": made["dtype"],
        "weights": next(about.get("weights") for about in ways.values()),
        "settings": {"temperature": joint["temperature"], "max_new_tokens": settings["max_new_tokens"]},
        "prompting": "raw text" if made["template"] is None else f"chat template, {_thinking(settings)}",
        "baseline": f"plain generate(), dynamic cache, {made['dtype']}" if "plain" in made["ways"] else None,
        "rows": [{key: row[key] for key in _KEPT_OF_ROW if row.get(key) is not None} for row in rows],
    }
    confidence = joint.get("confidence") or {}
    return {**record, "reliability": confidence["reliability"]} if confidence else record


def _thinking(settings: Mapping[str, Any]) -> str:
    words = {True: "thinking on", False: "thinking off", None: "thinking as the template has it"}
    return words[settings["thinking"]]


def _shortened(provenance: Mapping[str, Any], file: Path) -> dict[str, Any]:
    check_evaluation({"tau": 1.0, "provenance": provenance}, file)
    machine = provenance.get("machine") or {}
    return {
        "command": shorten_command(provenance.get("command") or "") or None,
        "commit": provenance.get("commit"),
        "versions": provenance.get("versions"),
        "machine": {key: machine.get(key) for key in ("device_name", "cpu_count", "threads")},
        "time": provenance.get("time"),
    }


def _cells(
    row: Mapping[str, Any], record: Mapping[str, Any], settings: Mapping[str, Any], name: str
) -> dict[str, str]:
    temperature, ratio = row.get("temperature"), row.get("ratio") or {}
    # Against the fastest dtype that plain generation has, where that was measured.
    fair = ratio.get("median_to_fastest_plain", ratio.get("median"))
    data = name if record.get("data") is None else f"{name} ({record['data']})"
    if "task" in row:
        data = _data(row)
    return {
        "data": data,
        "way": row.get("way", ""),
        "temperature": "" if temperature is None else ("greedy" if temperature == 0 else f"T = {temperature:g}"),
        "batch": _known(row.get("batch_size")),
        "prompts": _known(row.get("num_prompts")),
        "new tokens": _known(settings.get("max_new_tokens")),
        "dtype": _known(record.get("dtype")),
        "tau": f"{_between(row['tau'], row.get('tau_interval'))}{_with_lookup(row)}",
        "speed": "" if fair is None else f"{_between(fair, ratio.get('interval'))}x",
    }


def _data(row: Mapping[str, Any]) -> str:
    """What was asked, and how much of it where that is not all."""
    return f"{row['task']} ({row['cut']})" if row.get("cut") else row["task"]


def _with_lookup(row: Mapping[str, Any]) -> str:
    """What was looked up in the text is not the drafter's merit."""
    return " with lookup" if row.get("lookup_share") else ""


def _between(value: float, interval: Any) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _known(value: Any) -> str:
    return "" if value is None else str(value)
