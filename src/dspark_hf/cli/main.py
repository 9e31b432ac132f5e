"""The `dspark` command: registers the others and turns their errors into one clean line."""

from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from dspark_hf.cli import bench, demo, env, generate
from dspark_hf.cli.cache import cache
from dspark_hf.cli.convert import convert
from dspark_hf.cli.push import push
from dspark_hf.cli.regenerate import regenerate
from dspark_hf.cli.terminal import plain
from dspark_hf.cli.train import train
from dspark_hf.processes import end_in_order

_BAD_INPUT = 2
_INTERRUPTED = 130


class CleanErrors(TyperGroup):
    """Prints bad input as one line and exits with code 2; every other error keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with end_in_order():
                return super().invoke(ctx)
        # A package that only one command needs may be missing.
        except (ValueError, OSError, ImportError) as error:
            _print_error(str(error))
            raise typer.Exit(_BAD_INPUT) from None
        except KeyboardInterrupt:
            Console(stderr=True).print("\nstopped; what was written is kept")
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            from dspark_hf.publishing.hub_errors import UNANSWERED, is_unreachable

            if not is_unreachable(error):
                raise
            _print_error(f"{UNANSWERED} ({type(error).__name__}: {error})")
            raise typer.Exit(_BAD_INPUT) from None


def _print_error(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(plain(f"error: {' '.join(text.split())}"))


app = typer.Typer(
    name="dspark",
    cls=CleanErrors,
    help="DSpark speculative decoding for transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(demo.demo)
app.command()(generate.generate)
app.add_typer(bench.app, name="bench")
app.command()(regenerate)
app.command()(train)
app.command()(convert)
app.command()(push)
app.command()(cache)
app.command()(env.env)

if __name__ == "__main__":
    app()
