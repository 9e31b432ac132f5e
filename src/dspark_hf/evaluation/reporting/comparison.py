"""Several runs beside each other, and what keeps them from being compared."""

from collections.abc import Mapping
from typing import Any

from dspark_hf.evaluation.reporting.cells import degrees, number, ratio_of, task_of
from dspark_hf.evaluation.reporting.tables import (
    Table,
    context,
    is_whole,
    prompting,
    rows_of,
    sitting_out,
    without_empty,
)


def differences_of_runs(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What keeps the figures of several runs from being compared as they are, one sentence for each thing.

    Args:
        summaries (`Mapping`): Summaries by the run's name.
    """
    facts = {name: _facts(summary["made_with"]) for name, summary in summaries.items()}
    lines = [f"{name} is not whole: its figures are of what is there so far." for name, summary in summaries.items()
             if not is_whole(summary)]  # fmt: skip
    for key in dict.fromkeys(key for one in facts.values() for key in one):
        values = {name: one.get(key) for name, one in facts.items()}
        if len(set(values.values())) > 1:
            lines.append(f"The runs differ in {key} ({_each(values)}).")
    return lines


def _facts(made: Mapping[str, Any]) -> dict[str, str]:
    settings = made["settings"]
    facts = {
        "target": made["target"],
        "the target's weights": str(made["weights"]),
        "dtype": made["dtype"],
        "attention": str(made.get("attention")),
        "prompting": prompting(made),
        "new tokens": str(settings["max_new_tokens"]),
        "seed": str(settings["seed"]),
        "commit": str(made["commit"]),
        "processes": str(made["num_processes"]),
    }
    facts |= {f"prompts of {task['name']}": task["digest"] for task in made["tasks"]}
    facts |= {f"version of {name}": str(version) for name, version in made["versions"].items()}
    return facts | {f"machine ({name})": str(value) for name, value in made["machine"].items()}


def side_by_side(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tau and speed of several runs, a column each; what keeps them from being compared is said with it.

    Args:
        summaries (`Mapping`): The runs' summaries by name.
    """
    names, cells = list(summaries), {}
    for name, summary in summaries.items():
        for row in rows_of(summary, categories=False):
            key = (task_of(row), row["temperature"], row["batch_size"], row["way"])
            cells.setdefault(key, {})[name] = (number(row["tau"]), ratio_of(row))
    rows = [
        [key[0], degrees(key[1]), str(key[2]), key[3], *(one.get(name, ("", ""))[index]
         for index in (0, 1) for name in names)]
        for key, one in cells.items()
    ]  # fmt: skip
    columns = ["task", "T", "batch", "way", *(f"tau, {name}" for name in names), *(f"speed, {name}" for name in names)]
    notes = [*differences_of_runs(summaries), *_other_weights(summaries)]
    lines = {name: [context(summary), *sitting_out(summary)] for name, summary in summaries.items()}
    for line in dict.fromkeys(line for own in lines.values() for line in own):
        # What is so in some runs is said once, with their names.
        have = [name for name in names if line in lines[name]]
        notes.append(line if len(have) == len(names) else f"{', '.join(have)}: {line}")
    return without_empty(Table("Runs side by side", columns, rows, notes))


def _other_weights(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of ways that stand for other weights in each run, as those of drafters before and after training do."""
    ways = {name: summary["made_with"]["ways"] for name, summary in summaries.items()}
    lines = []
    for way in dict.fromkeys(way for own in ways.values() for way in own):
        weights = {name: own[way].get("weights") for name, own in ways.items() if way in own}
        if len(set(weights.values())) > 1:
            lines.append(f"{way} has other weights in each run ({_each(weights)}).")
    return lines


def _each(values: Mapping[str, Any]) -> str:
    """What each run has."""
    return "; ".join(f"{name}: {value}" for name, value in values.items())
