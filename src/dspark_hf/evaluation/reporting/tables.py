"""The tables of a run: what a terminal, a page and a card show alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dspark_hf.evaluation.figures.summary import ALL_TASKS
from dspark_hf.evaluation.running.ways import PLAIN


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        title (`str`): What it shows.
        columns (`list[str]`): Heads.
        rows (`list[list[str]]`): Cells; the empty ones were not measured.
        notes (`list[str]`): What must be known to read it.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def conditions(summary: Mapping[str, Any]) -> list[str]:
    """What every figure of a run's `summary` depends on, and what would mislead unsaid: one sentence each."""
    made = summary["made_with"]
    settings = made["settings"]
    lines = [
        f"Target {made['target']} in {made['dtype']}, at most {settings['max_new_tokens']} new tokens, seed "
        f"{settings['seed']}.",
        f"Prompts: {_prompting(made)}. Asked: {', '.join(map(_asked, made['tasks']))}.",
        f"Machine: {_machine(made['machine'])}.",
    ]
    if PLAIN in made["ways"]:
        lines.append(
            f"Baseline of ratios and identical ids: plain generate() with a dynamic cache in {made['dtype']}, same "
            "calls and process, ways in rotating order after a warm-up."
        )
    else:
        lines.append("No plain runs, so no ratios and no identical ids.")
    lines.append(
        "tau is the mean number of tokens per round, the target's own included. Brackets hold 95% bootstrap "
        "intervals: over prompts of tau, over calls of the median ratio."
    )
    cuts = [f"{task['name']} {task['cut']}" for task in made["tasks"] if task["cut"]]
    if cuts:
        lines.append(f"Cuts of tasks, evenly spread, which are not the whole tasks: {', '.join(cuts)} prompts.")
    synthetic = [name for name, about in made["ways"].items() if about["kind"] == "synthetic"]
    if synthetic:
        lines.append(f"{', '.join(synthetic)}: drafts were made to stand, which no drafter reached.")
    if made["num_processes"] > 1:
        lines.append(f"{made['num_processes']} processes ran side by side; on shared hardware they slow each other.")
    if summary.get("num_missing") or summary.get("num_missing", 0) is None:
        lines.append("The run is not whole: figures are of what is there so far.")
    return lines


def context(summary: Mapping[str, Any]) -> str:
    """What stands below every table of a run's `summary`: the baseline, and how prompts were put."""
    made = summary["made_with"]
    baseline = f"plain generate(), dynamic cache, {made['dtype']}" if PLAIN in made["ways"] else "none"
    return (
        f"Baseline: {baseline}. Prompts: {_prompting(made)}. At most {made['settings']['max_new_tokens']} new tokens."
    )


def headline(summary: Mapping[str, Any], *, categories: bool = False) -> Table:
    """One row for each task, temperature, batch size and way of a run's `summary`; with `categories`, for each of
    those.
    """
    rows = [
        [
            _task(row),
            _temperature(row),
            str(row["batch_size"]),
            row["way"],
            _with_interval(row["tau"], row["tau_interval"]),
            _percent(row["acceptance"]),
            _ratio(row),
            _identical(row["identical"]),
        ]
        for row in _rows(summary, categories)
        if not categories or row["category"] is not None
    ]
    columns = ["task", "T", "batch", "way", "tau", "accepted of verified", "speed, x plain", "plain's ids"]
    return Table("Categories" if categories else "Results", columns, rows, [context(summary)])


def tau_table(summary: Mapping[str, Any]) -> Table:
    """Tau of every way (rows) on every task (columns) of a run's `summary`, as Table 1 of the paper."""
    rows = [row for row in summary["rows"] if row["category"] is None and row["tau"] is not None]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    keys = list(dict.fromkeys((row["temperature"], row["batch_size"], row["way"]) for row in rows))
    taus = {(row["temperature"], row["batch_size"], row["way"], row["task"]): row["tau"] for row in rows}
    cells = [
        [_degrees(key[0]), str(key[1]), key[2], *(_number(taus.get((*key, task))) for task in tasks)] for key in keys
    ]
    heads = [next(_task(row) for row in rows if row["task"] == task) for task in tasks]
    return Table("Tokens per round", ["T", "batch", "way", *heads], cells, [context(summary)])


def confidence_table(summary: Mapping[str, Any]) -> Table:
    """Whether the drafters of a run's `summary` know which of their drafts stand."""
    rows = [
        [
            _task(row),
            _temperature(row),
            str(row["batch_size"]),
            row["way"],
            f"{row['confidence']['num_judged']:,}",
            _number(row["confidence"]["auroc"], 3),
            _percent(row["confidence"]["ece"]),
            _number(row["confidence"]["brier"], 3),
            _percent(row["verify_rate"]),
        ]
        for row in _rows(summary, categories=False)
        if row["confidence"]
    ]
    columns = ["task", "T", "batch", "way", "judged slots", "AUROC", "ECE", "Brier", "verified of drafted"]
    return Table("Confidence", columns, rows, [context(summary)])


def slot_table(summary: Mapping[str, Any]) -> Table:
    """How often each slot stands, by a run's `summary`."""
    rows = [
        [
            _task(row),
            _temperature(row),
            str(row["batch_size"]),
            row["way"],
            _rates(row["accepted_per_slot"]),
            _rates(row["accepted_per_slot_given_previous"]),
        ]
        for row in _rows(summary, categories=False)
        if row["accepted_per_slot"] and row["batch_size"] == min(_batch_sizes(summary))
    ]
    columns = ["task", "T", "batch", "way", "accepted with all before", "accepted given all before"]
    note = (
        "Of the slots that were verified. A policy that cuts keeps later ones where it holds them likely, so they may "
        "stand more often than earlier ones; `--speculation alone` verifies all."
    )
    return Table("Slots", columns, rows, [note, context(summary)])


def time_table(summary: Mapping[str, Any]) -> Table:
    """Where the time goes, and how much memory is taken, by a run's `summary`."""
    rows = []
    for row in _rows(summary, categories=False):
        share, peak, reached = row["time_share"], row["peak_bytes"], row["efficiency"]
        parts = [""] * 3 if share is None else [_percent(share[part]) for part in ("target", "drafter", "rest")]
        rows.append(
            [
                _task(row), _temperature(row), str(row["batch_size"]), row["way"], *parts,
                _percent(row["lookup_share"]), _percent(row["paused_share"]),
                "" if peak is None else f"{peak / 2**20:,.0f} MiB",
                "" if reached is None else _number(reached["median"]),
            ]
        )  # fmt: skip
    columns = ["task", "T", "batch", "way", "target", "drafter", "rest", "looked up", "paused", "peak memory",
               "efficiency"]  # fmt: skip
    notes = [
        "Shares of the rounds' time. Peak memory is the device's, on a CPU that of the whole process with all models "
        "loaded. Efficiency is the ratio over what the passes, timed alone, would allow.",
        context(summary),
    ]
    return _without_empty(Table("Time and memory", columns, rows, notes))


def all_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Every table of a run's `summary` that has rows."""
    tables = [
        headline(summary),
        headline(summary, categories=True),
        tau_table(summary),
        slot_table(summary),
        confidence_table(summary),
        time_table(summary),
    ]
    return [table for table in tables if table.rows]


def differences_of_runs(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What keeps the figures of several runs from being compared as they are, one sentence for each thing.

    Args:
        summaries (`Mapping`): Summaries by the run's name.
    """
    facts = {name: _facts(summary["made_with"]) for name, summary in summaries.items()}
    lines = []
    for key in dict.fromkeys(key for one in facts.values() for key in one):
        values = {name: one.get(key) for name, one in facts.items()}
        if len(set(values.values())) > 1:
            told = "; ".join(f"{name}: {value}" for name, value in values.items())
            lines.append(f"The runs differ in {key} ({told}).")
    return lines


def _facts(made: Mapping[str, Any]) -> dict[str, str]:
    settings = made["settings"]
    facts = {
        "the target's weights": f"{made['target']} {made['weights'] or ''}".strip()[:60],
        "dtype": made["dtype"],
        "prompting": _prompting(made),
        "new tokens": str(settings["max_new_tokens"]),
        "seed": str(settings["seed"]),
        "commit": str(made["commit"]),
        "processes": str(made["num_processes"]),
    }
    facts |= {f"prompts of {task['name']}": task["digest"] for task in made["tasks"]}
    facts |= {f"version of {name}": str(version) for name, version in made["versions"].items()}
    return facts | {f"machine ({name})": str(value) for name, value in made["machine"].items()}


def _prompting(made: Mapping[str, Any]) -> str:
    thinking = {True: "thinking on", False: "thinking off", None: "thinking as the template has it"}
    if made["template"] is None:
        return "raw text, no chat template"
    effort = made["settings"].get("reasoning_effort")
    told = f", reasoning effort {effort}" if effort else ""
    return f"chat template ({made['template'][:8]}), {thinking[made['settings']['thinking']]}{told}"


def _asked(task: Mapping[str, Any]) -> str:
    return f"{task['name']} ({_prompts(task['num_prompts'])})"


def _prompts(number: int) -> str:
    return f"{number} prompt{'' if number == 1 else 's'}"


def _machine(facts: Mapping[str, Any]) -> str:
    threads, cores = facts["threads"], facts["cpu_count"]
    where = "" if facts["device"] == "cpu" else f" ({facts['device']})"
    return f"{facts['device_name']}{where}, {threads} thread{'' if threads == 1 else 's'} of {cores} cores"


def _rows(summary: Mapping[str, Any], categories: bool) -> Iterator[Mapping[str, Any]]:
    return (row for row in summary["rows"] if categories or row["category"] is None)


def _batch_sizes(summary: Mapping[str, Any]) -> list[int]:
    return [row["batch_size"] for row in summary["rows"]]


def _task(row: Mapping[str, Any]) -> str:
    """A task's name, with its category, and with how much of it was asked wherever that is not all."""
    name = row["task"] if row["category"] is None else f"{row['task']}: {row['category']}"
    if row["cut"] and row["category"] is None and row["task"] != ALL_TASKS:
        return f"{name} ({row['cut']})"
    if row["category"] is None and row["task"] != ALL_TASKS:
        return name
    return f"{name} ({_prompts(row['num_prompts'])})"


def _temperature(row: Mapping[str, Any]) -> str:
    return _degrees(row["temperature"])


def _degrees(temperature: float) -> str:
    return f"{temperature:g}"


def _ratio(row: Mapping[str, Any]) -> str:
    if row["way"] == PLAIN:
        return "1"
    return "" if row["ratio"] is None else _with_interval(row["ratio"]["median"], row["ratio"]["interval"])


def _identical(identical: Mapping[str, Any] | None) -> str:
    if identical is None:
        return ""
    text = f"{identical['num_identical']} of {identical['num_answers']}"
    steps = [one["gap"] / one["spacing"] for one in identical["differences"]]
    return f"{text}, others at gaps of at most {max(steps):.2g} rounding steps" if steps else text


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _rates(rates: Sequence[float]) -> str:
    return "  ".join(f"{rate:.2f}" for rate in rates)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _without_empty(table: Table) -> Table:
    """The table without columns that have nothing."""
    keep = [index for index in range(len(table.columns)) if any(row[index] for row in table.rows)]
    columns, *rows = ([cells[index] for index in keep] for cells in (table.columns, *table.rows))
    return Table(table.title, columns, rows, table.notes)


def side_by_side(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tau and speed of several runs, a column each; what keeps them from being compared is said with it.

    Args:
        summaries (`Mapping`): The runs' summaries by name.
    """
    names, cells = list(summaries), {}
    for name, summary in summaries.items():
        for row in _rows(summary, categories=False):
            key = (_task(row), row["temperature"], row["batch_size"], row["way"])
            cells.setdefault(key, {})[name] = (_number(row["tau"]), _ratio(row))
    rows = [
        [key[0], _degrees(key[1]), str(key[2]), key[3], *(one.get(name, ("", ""))[index]
         for index in (0, 1) for name in names)]
        for key, one in cells.items()
    ]  # fmt: skip
    columns = ["task", "T", "batch", "way", *(f"tau, {name}" for name in names), *(f"speed, {name}" for name in names)]
    notes = [*differences_of_runs(summaries), *(f"{name}: {context(summary)}" for name, summary in summaries.items())]
    return _without_empty(Table("Runs side by side", columns, rows, notes))
