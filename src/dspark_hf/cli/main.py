"""The `dspark` command: registers the others and turns their errors into one clean line."""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from dspark_hf.cli import demo, env, generate
from dspark_hf.cli.bench.exactness import exactness
from dspark_hf.cli.bench.generate import generate as bench_generate
from dspark_hf.cli.bench.kernels import kernels
from dspark_hf.cli.bench.sweep import sweep
from dspark_hf.cli.cache import cache
from dspark_hf.cli.calibrate import calibrate
from dspark_hf.cli.convert import convert
from dspark_hf.cli.evaluation.diagnose import diagnose
from dspark_hf.cli.evaluation.evaluate import evaluate
from dspark_hf.cli.evaluation.report import report
from dspark_hf.cli.profile import profile
from dspark_hf.cli.push import push
from dspark_hf.cli.regenerate import regenerate
from dspark_hf.cli.serving.chat import chat
from dspark_hf.cli.serving.serve import serve
from dspark_hf.cli.terminal import plain
from dspark_hf.cli.train import RecipeCommand, train
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


def readable_help(command: Callable) -> str:
    """A `command`'s docstring for a terminal: text is wrapped, examples stay the lines that they are.

    Nothing in it is markup, so that what stands in brackets is printed.
    """
    paragraphs = inspect.getdoc(command).split("\n\n")
    return "\n\n".join(f"\b\n{text}" if text.startswith(" ") else text for text in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dspark_hf {version('dspark_hf')}")
        raise typer.Exit


app = typer.Typer(name="dspark", cls=CleanErrors, no_args_is_help=True, pretty_exceptions_enable=False,
                  rich_markup_mode=None)  # fmt: skip


@app.callback()
def dspark(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """DSpark speculative decoding for transformers."""


_bench = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=None)
for command in (bench_generate, exactness, sweep, kernels):
    _bench.command(help=readable_help(command))(command)

for command in (demo.demo, generate.generate, chat, serve, evaluate, diagnose, report):
    app.command(help=readable_help(command))(command)
app.add_typer(_bench, name="bench")
app.command(cls=RecipeCommand, help=readable_help(train))(train)
for command in (regenerate, convert, push, cache, calibrate, profile, env.env):
    app.command(help=readable_help(command))(command)

if __name__ == "__main__":
    app()
