"""What people call stays: public names, their arguments, commands and flags.

`api.txt` has them, a line a name or command. A test fails where one of them is gone; what is new is added by

    python tests/test_api.py
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import dspark_hf

ROOT = Path(__file__).resolve().parents[1]
HELD = Path(__file__).with_name("api.txt")


def names() -> Iterator[tuple[str, list[str]]]:
    """Every public name and method of it, with the names of its arguments."""
    for name in dspark_hf.__all__:
        public = getattr(dspark_hf, name)
        yield name, arguments_of(public)
        for one in public.__mro__ if inspect.isclass(public) else ():
            if not one.__module__.startswith("dspark_hf."):
                continue
            for member, value in vars(one).items():
                function = getattr(value, "__func__", value)
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{member}", arguments_of(function)
                elif not member.startswith("_") and isinstance(value, property):
                    yield f"{name}.{member}", []


def arguments_of(public: object) -> list[str]:
    """Arguments by name; `self` and those that take any are left out."""
    known = inspect.signature(public).parameters.values()
    return [one.name for one in known if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and one.name != "self"]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command, with its flags and the number of its arguments."""
    from dspark_hf.cli.main import app

    waiting = [("dspark", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        waiting += [(f"{name} {part}", below) for part, below in getattr(command, "commands", {}).items()]
        yield name, sorted(flag for one in command.params for flag in [*one.opts, *one.secondary_opts])


def found() -> dict[str, set[str]]:
    """What there is now. A name that a class has from several places has the arguments of the first."""
    there: dict[str, set[str]] = {}
    for name, arguments in [*names(), *commands()]:
        there.setdefault(name, set(arguments))
    return there


def held(text: str) -> dict[str, set[str]]:
    """What a list of lines `name: argument argument` holds."""
    lines = [line.partition(": ") for line in text.splitlines()]
    return {name.removesuffix(":"): set(arguments.split()) for name, _, arguments in lines}


def gone(before: dict[str, set[str]], now: dict[str, set[str]]) -> list[str]:
    """What was there and is not any more."""
    names = [name for name in before if name not in now]
    return names + [f"{name}: {one}" for name in before if name in now for one in sorted(before[name] - now[name])]


def test_nothing_that_people_call_is_gone():
    assert gone(held(HELD.read_text(encoding="utf-8")), found()) == []


def test_what_is_gone_is_seen():
    before = held("evaluate: target drafter\ndspark train: --config\nDSparkModel.bind:\n")
    now = {"evaluate": {"target"}, "DSparkModel.bind": {"target"}}
    assert gone(before, now) == ["dspark train", "evaluate: drafter"]


def test_every_public_name_has_an_entry_in_the_reference():
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    entries = re.findall(r"^::: dspark_hf\.(\w+)$", "\n".join(pages), re.MULTILINE)
    assert sorted(entries) == sorted(dspark_hf.__all__)


def test_every_name_that_pages_import_has_an_entry_in_the_reference():
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    entries = set(re.findall(r"^::: ([\w.]+)$", "\n".join(pages), re.MULTILINE))
    rows = (ROOT / "docs" / "names.md").read_text(encoding="utf-8").split("What else")[1].split("\n## ")[0]
    missing, num_found = set(), 0
    for places, told in re.findall(r"^\| ((?:`dspark_hf[\w.]+`(?:, )?)+) \| (.*) \|$", rows, re.MULTILINE):
        homes, names = [], re.findall(r"`(\w+)(?:\(\))?`", told)
        for place in re.findall(r"`([\w.]+)`", places):
            owner, _, last = place.rpartition(".")
            # What has no module of its own is itself the name.
            is_module = inspect.ismodule(getattr(importlib.import_module(owner), last, inspect))
            homes.append(place if is_module else owner)
            names += [] if is_module else [last]
        for name in names:
            paths = {f"{home}.{name}" for home in homes if hasattr(importlib.import_module(home), name)}
            num_found += bool(paths & entries)
            missing |= set() if paths & entries else paths
    assert num_found > 40 and missing == set()


def test_every_entry_of_the_reference_exists():
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, name = path.rpartition(".")
            assert hasattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name), path


def test_version(dspark):
    outcome = dspark("--version")
    assert outcome.code == 0 and re.fullmatch(r"dspark_hf \d+\.\d+\.\d+", outcome.out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered(shell, monkeypatch):
    from click.shell_completion import get_completion_class
    from typer._completion_classes import completion_init

    from dspark_hf.cli.main import app

    completion_init()
    complete = get_completion_class(shell)(typer.main.get_command(app), {}, "dspark", "_DSPARK_COMPLETE")
    assert "dspark" in complete.source()
    assert {"train", "evaluate"} <= {item.value for item in complete.get_completions([], "")}


if __name__ == "__main__":
    lines = [f"{name}: {' '.join(sorted(arguments))}".strip() for name, arguments in found().items()]
    HELD.write_text("\n".join(lines) + "\n", encoding="utf-8")
