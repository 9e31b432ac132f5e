"""`dspark env`: what to put into a bug report."""

from rich.console import Console
from rich.table import Table

from dspark_hf.cli.terminal import plain


def env() -> None:
    """Print versions, device and threads.

    Example:

        dspark env
    """
    import torch

    from dspark_hf.evaluation.origin import machine, versions

    table = Table(show_header=False, box=None)
    for name, value in versions().items():
        table.add_row(name, value or "not installed")
    for name, value in machine("cuda" if torch.cuda.is_available() else "cpu").items():
        table.add_row(name, plain(str(value)))
    Console().print(table)
