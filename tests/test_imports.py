"""The layout's rules, read from the syntax trees: who imports whom, and what no file may hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.generation.utils import GenerationMixin

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "dspark_hf"
FILES = sorted(SOURCE.rglob("*.py"))

# What each package may import besides itself.
ALLOWED = {
    "ops": set(),
    "publishing": set(),
    "modeling": {"ops", "publishing"},
    "generation": {"modeling", "ops"},
    "evaluation": {"generation", "data", "modeling", "ops"},
    "data": {"modeling", "ops"},
    "trainers": {"modeling", "data", "ops", "publishing"},
    # A composite repository is a target that generates with its drafter.
    "hub": {"generation", "modeling", "ops", "publishing"},
    "cli": {"ops", "modeling", "generation", "evaluation", "data", "trainers", "hub", "publishing"},
}
PRIVATE_GENERATION = {name for name in vars(GenerationMixin) if name.startswith("_") and not name.startswith("__")}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def imported_modules(tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports anywhere, also inside functions; relative ones made absolute."""
    package = ["dspark_hf", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def direction_breaches(path: Path) -> list[str]:
    package = path.relative_to(SOURCE).parts[0]
    others = set(ALLOWED) - ALLOWED[package] - {package}
    modules = imported_modules(parse(path), path)
    return [module for module in modules for other in others if is_under(module, f"dspark_hf.{other}")]


def private_generation_names(tree: ast.AST) -> set[str]:
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return (attributes | strings) & PRIVATE_GENERATION


def test_the_walk_sees_the_package():
    assert {"__init__.py", "cli/main.py", "evaluation/benchmark.py"} <= {name_of(path) for path in FILES}
    assert {path.relative_to(SOURCE).parts[0] for path in FILES if path.parent != SOURCE} <= set(ALLOWED)
    assert len(PRIVATE_GENERATION) > 10


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != SOURCE], ids=name_of)
def test_imports_point_in_one_direction(path):
    assert direction_breaches(path) == []


@pytest.mark.parametrize("name", ["files", "provenance"])
def test_files_for_everyone_rest_on_no_package(name):
    path = SOURCE / f"{name}.py"
    assert [module for module in imported_modules(parse(path), path) if is_under(module, "dspark_hf")] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_special_imports_stay_in_their_rooms(path):
    name = name_of(path)
    tree = parse(path)
    modules = list(imported_modules(tree, path))
    if not name.startswith("modeling/families/"):
        assert [module for module in modules if is_under(module, "transformers.models")] == []
    if not (name.startswith("ops/") and name.endswith("/triton.py")):
        assert [module for module in modules if is_under(module, "triton")] == []
    if name != "generation/seam.py":
        assert private_generation_names(tree) == set()
        private = [module for module in modules if is_under(module, "transformers.generation") and "._" in module]
        assert private == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_source_has_no_assert(path):
    assert [node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Assert)] == []


def test_no_drawer_for_leftovers():
    drawers = {"utils.py", "common.py", "helpers.py"}
    found = [path for folder in ("src", "tests", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in found if path.name in drawers] == []


def test_rules_catch_a_breach():
    here = SOURCE / "modeling" / "example.py"
    absolute = ast.parse("def f():\n    from dspark_hf.generation import seam")
    relative = ast.parse("from ..generation import seam")
    for tree in (absolute, relative):
        assert "dspark_hf.generation" in set(imported_modules(tree, here))
    assert private_generation_names(ast.parse("model._sample()")) == {"_sample"}
    assert private_generation_names(ast.parse("setattr(model, '_assisted_decoding', f)")) == {"_assisted_decoding"}
