"""What stands in a cell: figures as text, empty where there is none."""

from collections.abc import Mapping, Sequence
from typing import Any

from dspark_hf.evaluation.figures.summary import ALL_TASKS
from dspark_hf.evaluation.running.ways import PLAIN


def task_of(row: Mapping[str, Any]) -> str:
    """The name of a `row`'s task, with its category, and with how much of it was asked wherever that is not all."""
    name = row["task"] if row["category"] is None else f"{row['task']}: {row['category']}"
    if row["cut"] and row["category"] is None and row["task"] != ALL_TASKS:
        return f"{name} ({row['cut']})"
    if row["category"] is None and row["task"] != ALL_TASKS:
        return name
    return f"{name} ({_prompts(row['num_prompts'])})"


def asked(task: Mapping[str, Any]) -> str:
    """A `task` and how many prompts of it were asked."""
    return f"{task['name']} ({_prompts(task['num_prompts'])})"


def machine_of(facts: Mapping[str, Any]) -> str:
    """The machine that a run's `facts` are of."""
    threads, cores = facts["threads"], facts["cpu_count"]
    where = "" if facts["device"] == "cpu" else f" ({facts['device']})"
    return f"{facts['device_name']}{where}, {threads} thread{'' if threads == 1 else 's'} of {cores} cores"


def degrees(temperature: float) -> str:
    """A `temperature`."""
    return f"{temperature:g}"


def ratio_of(row: Mapping[str, Any]) -> str:
    """The speed of a `row`, as a multiple of plain generation's."""
    if row["way"] == PLAIN:
        return "1"
    return "" if row["ratio"] is None else with_interval(row["ratio"]["median"], row["ratio"]["interval"])


def identical_ids(identical: Mapping[str, Any] | None) -> str:
    """How many answers are `identical`, and how far the target was from the others."""
    if identical is None:
        return ""
    text = f"{identical['num_identical']} of {identical['num_answers']}"
    steps = [one["gap"] / one["spacing"] for one in identical["differences"]]
    return f"{text}, others at gaps of at most {max(steps):.2g} rounding steps" if steps else text


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A `value` with its `interval`, where there is one."""
    if value is None:
        return ""
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def signed_with_interval(value: float, interval: Sequence[float] | None) -> str:
    """A difference of that `value`, with its `interval`, where there is one."""
    # Of what rounds to nothing the sign is not told.
    told = [f"{round(one, 2) + 0.0:+.2f}" for one in (value, *(interval or ()))]
    return told[0] if interval is None else f"{told[0]} [{told[1]}, {told[2]}]"


def each(rates: Sequence[float]) -> str:
    """The `rates` of slots."""
    return "  ".join(f"{rate:.2f}" for rate in rates)


def percent(share: float | None) -> str:
    """A `share`."""
    return "" if share is None else f"{share:.1%}"


def number(value: float | None, digits: int = 2) -> str:
    """A `value` with so many `digits`."""
    return "" if value is None else f"{value:.{digits}f}"


def _prompts(number: int) -> str:
    return f"{number} prompt{'' if number == 1 else 's'}"
