"""The layout's rules, read from the syntax trees: who imports whom, and what no file may hold."""

import ast

import pytest
from structure import (
    ALLOWED,
    FLOOR_OF,
    FOR_EVERYONE,
    MOST_MODULES,
    ROOT,
    SOURCE,
    breaches,
    circles,
    import_graph,
    imported_modules,
    is_under,
    main,
    modules_per_folder,
    name_of,
    parse,
    report,
)
from transformers.generation.utils import GenerationMixin

FILES = sorted(SOURCE.rglob("*.py"))
GRAPH = import_graph()
PRIVATE_GENERATION = {name for name in vars(GenerationMixin) if name.startswith("_") and not name.startswith("__")}
# The seam, the one check that asks whether a target has its own version of a private method, what decodes by the
# kernels of plain decoding, and speculation inside continuous batching.
KNOW_PRIVATE_GENERATION = {
    "generation/seam.py", "generation/target/own_inputs.py", "generation/target/decode_kernels.py",
    "serving/batching/manager.py", "serving/batching/processor.py", "serving/batching/release.py",
}  # fmt: skip


def private_generation_names(tree: ast.AST) -> set[str]:
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return (attributes | strings) & PRIVATE_GENERATION


def test_the_walk_sees_the_package():
    assert {"__init__.py", "cli/main.py", "evaluation/origin.py"} <= set(GRAPH)
    assert "generation/decode.py" in GRAPH["generation/entry.py"]
    assert "generation/entry.py" in GRAPH["generation/seam.py"]  # imported inside a function
    assert {name.split("/")[0] for name in GRAPH if "/" in name} == set(ALLOWED)
    inside = {path.relative_to(SOURCE / "generation").parts[0] for path in (SOURCE / "generation").rglob("*.py")}
    assert {part.removesuffix(".py") for part in inside} == {*FLOOR_OF, "__init__"}
    assert len(PRIVATE_GENERATION) > 10


def test_imports_point_in_one_direction():
    assert breaches(GRAPH) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(GRAPH) == []


def test_no_folder_is_crowded():
    assert {folder: count for folder, count in modules_per_folder().items() if count > MOST_MODULES} == {}


def test_files_for_everyone_rest_on_no_package():
    assert {name: GRAPH[name] - FOR_EVERYONE for name in FOR_EVERYONE} == {name: set() for name in FOR_EVERYONE}


def test_breaches_and_circles_are_seen():
    graph = {
        "__init__.py": {"cli/main.py"},
        "ops/verify.py": {"files.py", "modeling/heads.py"},
        "modeling/heads.py": {"ops/verify.py", "__init__.py"},
        "generation/config.py": {"generation/prompt_lookup.py", "generation/drafts/lookup.py"},
        "generation/tokens/stopping.py": {"generation/rollback/rewinding.py"},
        "generation/drafts/lookup.py": {"generation/config.py", "generation/drafts/context.py"},
        "generation/seam.py": {"generation/attach.py"},
    }
    graph |= {other: set() for imported in graph.values() for other in imported if other not in graph}
    assert breaches(graph) == [
        ("generation/config.py", "generation/drafts/lookup.py"),
        ("generation/tokens/stopping.py", "generation/rollback/rewinding.py"),
        ("modeling/heads.py", "__init__.py"),
        ("ops/verify.py", "modeling/heads.py"),
    ]
    assert circles(graph) == [
        ["generation/config.py", "generation/drafts/lookup.py"],
        ["modeling/heads.py", "ops/verify.py"],
    ]


def test_imports_are_seen_wherever_they_stand(tmp_path):
    files = {
        "__init__.py": "",
        "a/__init__.py": "from .one import f",
        "a/one.py": "def f():\n    from dspark_hf.b import two\n",
        "b/__init__.py": "",
        "b/two.py": "import typing\nif typing.TYPE_CHECKING:\n    from ..a.one import f\n",
        "b/three.py": "from dspark_hf.a import f\nfrom . import two",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = import_graph(tmp_path)
    assert graph["a/one.py"] == {"b/two.py"}
    assert graph["b/two.py"] == {"a/one.py"}
    assert graph["b/three.py"] == {"a/__init__.py", "b/two.py"}
    assert circles(graph) == [["a/one.py", "b/two.py"]]
    assert modules_per_folder(tmp_path) == {"a": 1, "b": 2}


def test_report_tells_the_figures():
    text, is_fine = report()
    lines = text.splitlines()
    assert is_fine
    assert lines[0].startswith(f"{len(FILES)} files in ")
    assert lines[2:] == [
        f"folders over {MOST_MODULES}: 0",
        "circles between files: 0",
        "imports against the direction: 0",
    ]


def test_a_broken_rule_is_the_exit_status(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 1
    assert "There are no Python files in" in capsys.readouterr().out
    (tmp_path / "data").mkdir()
    for number in range(MOST_MODULES):
        (tmp_path / "data" / f"part{number}.py").write_text("")
    assert main([str(tmp_path)]) == 0
    (tmp_path / "data" / "one_more.py").write_text("")
    assert main([str(tmp_path)]) == 1
    assert f"folders over {MOST_MODULES}: 1\n  data: {MOST_MODULES + 1}\n" in capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_special_imports_stay_in_their_rooms(path):
    name = name_of(path)
    tree = parse(path)
    modules = list(imported_modules(tree, path))
    if not name.startswith("modeling/families/"):
        assert [module for module in modules if is_under(module, "transformers.models")] == []
    if not (name.startswith("ops/") and name.endswith("/triton.py")):
        assert [module for module in modules if is_under(module, "triton")] == []
    if name not in KNOW_PRIVATE_GENERATION:
        assert private_generation_names(tree) == set()
        private = [module for module in modules if is_under(module, "transformers.generation") and "._" in module]
        assert private == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_source_has_no_assert(path):
    assert [node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Assert)] == []


def test_no_drawer_for_leftovers():
    drawers = {"utils.py", "common.py", "helpers.py"}
    found = [path for folder in ("src", "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in found if path.name in drawers] == []


def test_rules_catch_a_breach():
    here = SOURCE / "modeling" / "example.py"
    absolute = ast.parse("def f():\n    from dspark_hf.generation import seam")
    relative = ast.parse("from ..generation import seam")
    for tree in (absolute, relative):
        assert "dspark_hf.generation" in set(imported_modules(tree, here))
    assert private_generation_names(ast.parse("model._sample()")) == {"_sample"}
    assert private_generation_names(ast.parse("setattr(model, '_assisted_decoding', f)")) == {"_assisted_decoding"}
