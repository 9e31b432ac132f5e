"""`dspark report`: a page of one or more runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dspark_hf.cli.evaluation.tables import show_tables


def report(
    run: Annotated[
        list[str],
        typer.Argument(help="Folders of `dspark evaluate --out`, or NAME=FOLDER; several stand side by side."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file; report.html in the run's folder by default, or here."),
    ] = None,
    answers: Annotated[
        int, typer.Option(min=0, help="Answers in the explorer for each task, temperature and way.")
    ] = 2,
) -> None:
    """Make one HTML file of runs, with pictures as PNG beside it.

    It needs no network: tables, pictures, and answers whose tokens are coloured by where they came from and whose
    rounds can be opened. Runs that differ in prompts, dtype, versions or machine are labelled so.

    Examples:

        dspark report runs/all
        dspark report runs/first runs/second --out both.html
        dspark report old=runs/monday/all new=runs/tuesday/all
    """
    from dspark_hf.evaluation.reporting.comparison import side_by_side
    from dspark_hf.evaluation.reporting.page import named_runs, write_report
    from dspark_hf.evaluation.reporting.tables import conditions, main_tables

    folders = named_runs(run)
    only = next(iter(folders.values()), None) if len(folders) == 1 else None
    out = out or (Path("report.html") if only is None else only.path / "report.html")
    written = write_report(run, out, answers_per_task=answers)
    summaries = {name: folder.summary() for name, folder in folders.items()}
    console = Console(highlight=False)
    if only is None:
        show_tables(console, [side_by_side(summaries)])
    else:
        (summary,) = summaries.values()
        show_tables(console, main_tables(summary), conditions(summary))
    for path in written:
        typer.echo(str(path))
