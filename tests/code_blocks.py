"""Code of pages: fenced blocks, what each needs that a test has not, and shell commands looked at word by word.

A block whose first line reads `# Needs ....` (a GPU, the Hub, an engine, minutes) is not run; its commands and flags
must exist all the same, and its Python must compile.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import click
import typer
from markdown_it import MarkdownIt

from dspark_hf.cli.main import app
from dspark_hf.trainers.recipes.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"python", "bash"}
# Beside them there is text that is no code: files, tables, formulas.
OTHERS = {"text", "yaml", "json"}
_OTHER_PROGRAMS = ("hf", "vllm", "kill", "git", "export")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        page (`Path`): The page.
        line (`int`): Its first line there, from 1.
        language (`str`): `python`, `bash`, or what is no code.
        code (`str`): What stands in it.
    """

    page: Path
    line: int
    language: str
    code: str

    @property
    def needs(self) -> str | None:
        """What it needs that a test has not, in the page's own words."""
        found = re.match(r"# Needs (.+)\.\n", self.code)
        return found and found[1]

    @property
    def place(self) -> str:
        return f"{self.page.name}, line {self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order, those inside lists too."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [Block(page, one.map[0] + 2, one.info.strip(), one.content) for one in tokens if one.type == "fence"]


def indented_blocks_of(page: Path) -> list[str]:
    """Code that is only indented."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [one.content for one in tokens if one.type == "code_block"]


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command: lines that end in a backslash are one, comments are none."""
    for line in code.replace("\\\n", " ").splitlines():
        # Text that is no command may have quotes of its own.
        with contextlib.suppress(ValueError):
            if words := shlex.split(line.replace("$(which dspark)", "dspark"), comments=True):
                yield words


def check_command(words: list[str]) -> None:
    """Whether everything that a command names exists: program, file, subcommand, flags, keys of a recipe.

    Raises:
        `ValueError`: If it does not, with what.
    """
    program, *arguments = words
    if Path(program).name == "dspark":
        check_dspark(arguments)
    elif program == "python" and arguments[0] != "-m":
        check_script(*arguments)
    elif program == "accelerate":
        check_launched(arguments)
    elif program == "torchrun":
        check_dspark(arguments[arguments.index("dspark_hf") + 1 :])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        _demand(set(words_only(arguments)) <= set(targets), f"make has no target {arguments}")
    elif program == "pip":
        extras = importlib.util.module_from_spec(importlib.util.spec_from_file_location("setup", ROOT / "setup.py"))
        for name in re.findall(r"\[(\w+)\]", " ".join(arguments)):
            _demand(f'"{name}": [' in (ROOT / "setup.py").read_text(), f"{extras.__name__}.py has no extra {name}")
    elif program.startswith("examples/"):
        _demand((ROOT / program).is_file(), f"there is no {program}")
    else:
        _demand(program in _OTHER_PROGRAMS or "sglang" in arguments[1], f"{program} is not known here")


def words_only(arguments: list[str]) -> list[str]:
    """Arguments without flags and settings."""
    return [one for one in arguments if not one.startswith("-") and "=" not in one]


def check_dspark(arguments: list[str]) -> None:
    """Parse the arguments of `dspark` as it does itself, and the keys of a recipe behind `train`."""
    command, name = typer.main.get_command(app), "dspark"
    while isinstance(command, click.Group | typer.core.TyperGroup) and not arguments[0].startswith("-"):
        name, *arguments = arguments
        _demand(name in command.commands, f"dspark has no command {name}")
        command = command.commands[name]
    if arguments in (["--help"], ["--version"], ["--install-completion"], ["--show-completion"]):
        return
    try:
        # Files need not be there.
        with mock.patch.object(click.Path, "convert", lambda self, value, *_: value):
            context = command.make_context(name, list(arguments))
    except Exception as error:
        message = error.format_message() if hasattr(error, "format_message") else error
        raise ValueError(f"dspark {name}: {message}") from error
    if name == "train":
        config = context.params["config"]
        known = config is not None and (ROOT / str(config)).is_file()
        load_recipe(ROOT / str(config) if known else None, context.params["overrides"])


def check_launched(arguments: list[str]) -> None:
    """`accelerate launch --config_file FILE PROGRAM ...`"""
    _demand(arguments[:2] == ["launch", "--config_file"], f"accelerate {arguments[:2]} is not known here")
    _demand((ROOT / arguments[2]).is_file(), f"there is no {arguments[2]}")
    check_dspark(arguments[4:]) if arguments[3] == "dspark" else check_script(*arguments[3:])


def check_script(file: str, *arguments: str) -> None:
    """A script is there and knows its flags, by its own help."""
    known = flags_of(file)
    for one in arguments:
        flag = one.partition("=")[0]
        _demand(not flag.startswith("--") or flag in known, f"{file} has no {flag}")


@functools.cache
def flags_of(file: str) -> frozenset[str]:
    """The flags of a script of the repository, as its `--help` prints them."""
    _demand((ROOT / file).is_file(), f"there is no {file}")
    printed = io.StringIO()
    with mock.patch.object(sys, "argv", [file, "--help"]), contextlib.redirect_stdout(printed):
        with mock.patch.object(argparse.HelpFormatter, "__init__", _wide), contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / file), run_name="__main__")
    return frozenset(re.findall(r"--[\w-]+", printed.getvalue()))


_narrow = argparse.HelpFormatter.__init__


def _wide(self, prog: str, **options) -> None:
    _narrow(self, prog, **{**options, "width": 1000})


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
