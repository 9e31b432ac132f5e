"""The report: one HTML file that needs nothing else, and its pictures as PNG."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from dspark_hf.evaluation.reporting.charts import all_charts, as_svg, save_png
from dspark_hf.evaluation.reporting.comparison import differences_of_runs, side_by_side
from dspark_hf.evaluation.reporting.explorer import explorer_data
from dspark_hf.evaluation.reporting.tables import Table, all_tables, conditions
from dspark_hf.evaluation.running.folder import REMOVE_SUMMARY, RunFolder, explained
from dspark_hf.evaluation.tasks.loading import named_place
from dspark_hf.files import write_text

_TEMPLATE = Path(__file__).with_name("report.html")


def write_report(runs: Sequence[str | Path], out: str | Path, *, answers_per_task: int = 2) -> list[Path]:
    """Make a page of one or more runs.

    Args:
        runs (`Sequence[str | Path]`): Folders that [`evaluate`] filled, each as such or as `NAME=FOLDER`; without a
            name, a run goes by that of its folder.
        out (`str` or `Path`): The HTML file; pictures go beside it, into a folder of its name.
        answers_per_task (`int`, *optional*, defaults to 2): Answers shown of each task, temperature and way.

    Returns:
        `list[Path]`: What was written, the page first.

    Raises:
        `ValueError`: If there is no run, two have one name, a folder holds none, or `out` is no name of an HTML file.
    """
    if not runs:
        raise ValueError("A report needs a run: dspark report RUN.")
    folders = named_runs(runs)
    out, answers = Path(out), []
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        # Pictures go into the folder of that name, and records of a run shall stay what they are.
        place = out / "report.html" if out.is_dir() or not out.suffix else out.with_suffix(".html")
        raise ValueError(f"The page needs the name of an HTML file, such as {place}, got {out}.")
    for name, folder in folders.items():
        calls, tokens = folder.read()[1], folder.tokens()
        with explained(folder.path):
            answers += explorer_data(name, calls, tokens, answers_per_task)
    summaries = {name: folder.summary() for name, folder in folders.items()}
    with explained(" or ".join(map(str, runs)), REMOVE_SUMMARY):
        charts = all_charts(summaries)
        pictures = {name: as_svg(figure, title) for name, (title, figure) in charts.items()}
        titles = {name: title for name, (title, _) in charts.items()}
        text = page(summaries, [(titles[name], pictures[name]) for name in charts], answers)
    write_text(out, text)
    written = [out]
    for name, (_, figure) in charts.items():
        written.append(out.with_suffix("") / f"{name}.png")
        save_png(figure, written[-1])
    return written


def named_runs(runs: Sequence[str | Path]) -> dict[str, RunFolder]:
    """Folders by what their runs are called.

    Args:
        runs (`Sequence[str | Path]`): As of [`write_report`].

    Raises:
        `ValueError`: If two have one name.
    """
    folders: dict[str, RunFolder] = {}
    for run in runs:
        name, place = named_place(str(run))
        folder = RunFolder(place or name)
        name = name if place else folder.path.resolve().name
        if name in folders:
            raise ValueError(
                f"Two runs are called {name!r}: {folders[name].path} and {folder.path}. Give one another name: "
                f"NAME={folder.path}."
            )
        folders[name] = folder
    return folders


def page(
    summaries: Mapping[str, Mapping[str, Any]],
    pictures: Sequence[tuple[str, str]],
    answers: Sequence[Mapping[str, Any]],
) -> str:
    """The page's text.

    Args:
        summaries (`Mapping`): Summaries by the run's name.
        pictures (`Sequence[tuple[str, str]]`): Titles and SVG elements.
        answers (`Sequence[Mapping]`): See [`~evaluation.reporting.explorer.explorer_data`].
    """
    differences = differences_of_runs(summaries)
    comparison = side_by_side(summaries)
    # What stands in the box above it need not stand below it again.
    comparison = replace(comparison, notes=[note for note in comparison.notes if note not in differences])
    return _template().render(
        title=", ".join(summaries),
        runs={name: _run(summary) for name, summary in summaries.items()},
        differences=differences,
        comparison=comparison if len(summaries) > 1 else None,
        pictures=[(title, jinja2.utils.markupsafe.Markup(svg)) for title, svg in pictures],
        answers=list(answers),
    )


def _run(summary: Mapping[str, Any]) -> dict[str, Any]:
    made = summary["made_with"]
    source = summary.get("provenance") or {}
    tables: list[Table] = all_tables(summary)
    return {
        "conditions": conditions(summary),
        "tables": tables,
        "provenance": {
            "command": source.get("command"),
            "time": source.get("time"),
            "commit": made["commit"],
            "target": f"{made['target']} ({made['weights']})",
            **{f"way {name}": _told(about) for name, about in made["ways"].items()},
            "machine": _told(made["machine"]),
            "versions": _told(made["versions"]),
            **{f"task {task['name']}": _told(task["source"]) for task in made["tasks"]},
        },
    }


def _told(facts: Mapping[str, Any]) -> str:
    """Facts in one line."""
    parts = ((name, f"({_told(value)})" if isinstance(value, Mapping) else value) for name, value in facts.items())
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in parts if value not in (None, "()"))


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
