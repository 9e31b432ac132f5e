"""Tables of a run on a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dspark_hf.cli.terminal import plain, visible_name


def show_tables(console: Console, tables: Sequence[Any], notes: Sequence[str] = ()) -> None:
    """Print tables, and below them what must be known to read them, each sentence once.

    Args:
        console (`rich.console.Console`): Where to print.
        tables (`Sequence[Table]`): See [`~evaluation.reporting.tables.Table`].
        notes (`Sequence[str]`, *optional*): Sentences for all of them.
    """
    said: set[str] = set()
    for table in tables:
        shown = Table(title=plain(table.title, "table.title"))
        for index, column in enumerate(table.columns):
            shown.add_column(plain(column), overflow="fold", ratio=2 if index == 0 else None)
        for row in table.rows:
            shown.add_row(*map(plain, row))
        console.print(shown)
        _print_notes(console, table.notes, said)
    _print_notes(console, notes, said)


def _print_notes(console: Console, notes: Sequence[str], said: set[str]) -> None:
    for note in dict.fromkeys(notes):
        if note not in said:
            console.print(plain(note, "dim"))
    said.update(notes)


def progress_bar(console: Console) -> Progress:
    """How far a measurement is, on a `console`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), _Note(), console=console)


class _Note(ProgressColumn):
    """What is being measured: names of others' files are in it."""

    def render(self, task: Any) -> Text:
        return plain(visible_name(task.fields["note"]))
