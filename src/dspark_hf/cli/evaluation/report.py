"""`dspark report`: a page of one or more runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dspark_hf.cli.evaluation.tables import show_tables


def report(
    run: Annotated[list[Path], typer.Argument(help="Folders of `dspark evaluate --out`; several stand side by side.")],
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
    """
    from dspark_hf.evaluation import RunFolder
    from dspark_hf.evaluation.reporting.page import write_report
    from dspark_hf.evaluation.reporting.tables import conditions, headline

    out = out or (run[0] / "report.html" if len(run) == 1 else Path("report.html"))
    written = write_report(run, out, answers_per_task=answers)
    if len(run) == 1:
        summary = RunFolder(run[0]).summary()
        show_tables(Console(highlight=False), [headline(summary)], conditions(summary))
    for path in written:
        typer.echo(str(path))
