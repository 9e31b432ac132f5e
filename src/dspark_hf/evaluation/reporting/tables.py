"""The tables of a run: what a terminal and a page show alike."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dspark_hf.evaluation.reporting.cells import (
    asked,
    degrees,
    each,
    identical_ids,
    machine_of,
    number,
    percent,
    ratio_of,
    signed_with_interval,
    task_of,
    with_interval,
)
from dspark_hf.evaluation.running.ways import PLAIN

# Why ways sit out, by their kind.
_LIMITS = {
    "synthetic": "takes greedy decoding only",
    "transformers' prompt lookup": "takes one prompt at a time",
    "assistant model": "takes one prompt at a time",
}


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
        f"Prompts: {prompting(made)}. Asked: {', '.join(map(asked, made['tasks']))}.",
        f"Machine: {machine_of(made['machine'])}.",
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
    if not is_whole(summary):
        lines.append("The run is not whole: figures are of what is there so far.")
    return lines


def sitting_out(summary: Mapping[str, Any]) -> list[str]:
    """Which ways of a run's `summary` have no rows at some of its temperatures and batch sizes, one sentence each."""
    rows = summary["rows"]
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        told = []
        for key, what in (("temperature", "T"), ("batch_size", "batch")):
            missing = {row[key] for row in rows} - {row[key] for row in rows if row["way"] == way}
            told += [f"{what} {one:g}" for one in sorted(missing)]
        if told:
            kind = summary["made_with"]["ways"][way]["kind"]
            lines.append(f"{way} has no rows at {' and '.join(told)}: it {_LIMITS.get(kind, 'sat them out')}.")
    return lines


def is_whole(summary: Mapping[str, Any]) -> bool:
    """Whether a run's `summary` is of all its calls."""
    # Figures that were made from the records of an earlier version do not tell.
    return summary.get("num_missing", 0) == 0


def context(summary: Mapping[str, Any]) -> str:
    """What stands below every table of a run's `summary`: the baseline, and how prompts were put."""
    made = summary["made_with"]
    baseline = f"plain generate(), dynamic cache, {made['dtype']}" if PLAIN in made["ways"] else "none"
    return (
        f"Baseline: {baseline}. Prompts: {prompting(made)}. At most {made['settings']['max_new_tokens']} new tokens."
    )


def headline(summary: Mapping[str, Any], *, categories: bool = False) -> Table:
    """One row for each task, temperature, batch size and way of a run's `summary`; with `categories`, for each of
    those.
    """
    rows = [
        [
            task_of(row),
            degrees(row["temperature"]),
            str(row["batch_size"]),
            row["way"],
            with_interval(row["tau"], row["tau_interval"]),
            percent(row["acceptance"]),
            ratio_of(row),
            identical_ids(row["identical"]),
        ]
        for row in rows_of(summary, categories)
        if not categories or row["category"] is not None
    ]
    columns = ["task", "T", "batch", "way", "tau", "accepted of verified", "speed, x plain", "plain's ids"]
    return Table("Categories" if categories else "Results", columns, rows, [context(summary), *sitting_out(summary)])


def tau_table(summary: Mapping[str, Any]) -> Table:
    """Tau of every way (rows) on every task (columns) of a run's `summary`, as Table 1 of the paper."""
    rows = [row for row in summary["rows"] if row["category"] is None and row["tau"] is not None]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    keys = list(dict.fromkeys((row["temperature"], row["batch_size"], row["way"]) for row in rows))
    taus = {(row["temperature"], row["batch_size"], row["way"], row["task"]): row["tau"] for row in rows}
    cells = [
        [degrees(key[0]), str(key[1]), key[2], *(number(taus.get((*key, task))) for task in tasks)] for key in keys
    ]
    heads = [next(task_of(row) for row in rows if row["task"] == task) for task in tasks]
    notes = [context(summary), *sitting_out(summary)]
    return Table("Tokens per round", ["T", "batch", "way", *heads], cells, notes)


def tau_differences(summary: Mapping[str, Any]) -> Table:
    """How far ways of a run's `summary` are in tau from earlier ones, on the same prompts."""
    rows = []
    for row in rows_of(summary, categories=False):
        # Figures of an earlier version have none.
        if (against := row.get("tau_against")) is not None:
            difference = signed_with_interval(against["difference"], against["interval"])
            rows.append(
                [
                    task_of(row),
                    degrees(row["temperature"]),
                    str(row["batch_size"]),
                    row["way"],
                    against["way"],
                    str(against["num_prompts"]),
                    difference,
                ]
            )
    columns = ["task", "T", "batch", "way", "against", "prompts of both", "difference"]
    note = "Brackets hold 95% bootstrap intervals over prompts, each drawn with what both ways made of it."
    return Table("Differences of tau", columns, rows, [note, context(summary)])


def confidence_table(summary: Mapping[str, Any]) -> Table:
    """Whether the drafters of a run's `summary` know which of their drafts stand."""
    rows = [
        [
            task_of(row),
            degrees(row["temperature"]),
            str(row["batch_size"]),
            row["way"],
            f"{row['confidence']['num_judged']:,}",
            number(row["confidence"]["auroc"], 3),
            percent(row["confidence"]["ece"]),
            number(row["confidence"]["brier"], 3),
            percent(row["verify_rate"]),
        ]
        for row in rows_of(summary, categories=False)
        if row["confidence"]
    ]
    columns = ["task", "T", "batch", "way", "judged slots", "AUROC", "ECE", "Brier", "verified of drafted"]
    return Table("Confidence", columns, rows, [context(summary)])


def slot_table(summary: Mapping[str, Any]) -> Table:
    """How often each slot stands, by a run's `summary`."""
    rows = [
        [
            task_of(row),
            degrees(row["temperature"]),
            str(row["batch_size"]),
            row["way"],
            each(row["accepted_per_slot"]),
            each(row["accepted_per_slot_given_previous"]),
        ]
        for row in rows_of(summary, categories=False)
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
    for row in rows_of(summary, categories=False):
        share, peak, reached = row["time_share"], row["peak_bytes"], row["efficiency"]
        parts = [""] * 3 if share is None else [percent(share[part]) for part in ("target", "drafter", "rest")]
        rows.append(
            [
                task_of(row), degrees(row["temperature"]), str(row["batch_size"]), row["way"], *parts,
                percent(row["lookup_share"]), percent(row["paused_share"]),
                "" if peak is None else f"{peak / 2**20:,.0f} MiB",
                "" if reached is None else number(reached["median"]),
            ]
        )  # fmt: skip
    columns = ["task", "T", "batch", "way", "target", "drafter", "rest", "looked up", "paused", "peak memory",
               "efficiency"]  # fmt: skip
    notes = [
        "Shares of the rounds' time. Peak memory is the device's, on a CPU that of the whole process with all models "
        "loaded. Efficiency is the ratio over what the passes, timed alone, would allow.",
        context(summary),
        *sitting_out(summary),
    ]
    return without_empty(Table("Time and memory", columns, rows, notes))


def main_tables(summary: Mapping[str, Any]) -> list[Table]:
    """The tables of a run's `summary` that a terminal shows: those that have rows."""
    return [table for table in (headline(summary), tau_differences(summary)) if table.rows]


def all_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Every table of a run's `summary` that has rows."""
    tables = [
        headline(summary),
        headline(summary, categories=True),
        tau_table(summary),
        tau_differences(summary),
        slot_table(summary),
        confidence_table(summary),
        time_table(summary),
    ]
    return [table for table in tables if table.rows]


def prompting(made: Mapping[str, Any]) -> str:
    """How prompts were put in a run, from what it was `made` with."""
    thinking = {True: "thinking on", False: "thinking off", None: "thinking as the template has it"}
    if made["template"] is None:
        return "raw text, no chat template"
    effort = made["settings"].get("reasoning_effort")
    told = f", reasoning effort {effort}" if effort else ""
    return f"chat template ({made['template'][:8]}), {thinking[made['settings']['thinking']]}{told}"


def rows_of(summary: Mapping[str, Any], categories: bool) -> Iterator[Mapping[str, Any]]:
    """Rows of a run's `summary`; those of single `categories` only if asked for."""
    return (row for row in summary["rows"] if categories or row["category"] is None)


def _batch_sizes(summary: Mapping[str, Any]) -> list[int]:
    return [row["batch_size"] for row in summary["rows"]]


def without_empty(table: Table) -> Table:
    """The `table` without columns that have nothing."""
    keep = [index for index in range(len(table.columns)) if any(row[index] for row in table.rows)]
    columns, *rows = ([cells[index] for index in keep] for cells in (table.columns, *table.rows))
    return Table(table.title, columns, rows, table.notes)
