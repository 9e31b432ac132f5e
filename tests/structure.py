"""The package's structure, read from its syntax trees: modules per folder, circles, imports against the direction.

python tests/structure.py [SRC]     of this checkout, or of another src/dspark_hf; exit status 1 if a rule is broken
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dspark_hf"
SOURCE = ROOT / "src" / PACKAGE
MOST_MODULES = 16

FOR_EVERYONE = {
    "commands.py", "files.py", "line_file.py", "messages.py", "processes.py", "processor.py", "provenance.py",
}  # fmt: skip
# The package's public names: for users. Whoever imports drafters gets the seam from there, too, and the seam loads a
# drafter that a pipeline is only told the name of.
FACADE, MAY_ASK_FACADE = "__init__.py", {"modeling/__init__.py", "generation/seam.py"}
# What each package may import besides itself.
ALLOWED = {
    "ops": set(),
    "publishing": set(),
    "modeling": {"ops", "publishing"},
    "generation": {"modeling", "ops"},
    "evaluation": {"generation", "data", "modeling", "ops"},
    # A cache goes to the Hub as drafters do.
    "data": {"modeling", "ops", "publishing"},
    # Trainers decode with the drafter to see how much is accepted, and write its card.
    "trainers": {"generation", "modeling", "data", "ops", "publishing"},
    # A server loads what it serves, renders chats, and asks what engines demand.
    "serving": {"generation", "data", "modeling", "ops", "hub", "publishing"},
    # A composite repository is a target that generates with its drafter.
    "hub": {"generation", "modeling", "ops", "publishing"},
    "cli": {"ops", "modeling", "generation", "serving", "evaluation", "data", "trainers", "hub", "publishing"},
}
# The floors of generation/, from the ground up: a part may import parts of lower floors, and files of its own floor.
FLOORS = (
    {"lengths"},
    {"stats", "round_logs", "stopwatch", "prompt_lookup", "config", "request"},
    {"tokens", "rollback"},
    {"target"},
    {"drafts"},
    {"static"},
    {"decode", "choosing"},
    {"checks", "entry"},
    {"attach", "seam", "misuse"},
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def name_of(path: Path, source: Path = SOURCE) -> str:
    """A file's path inside the package, e.g. `generation/seam.py`."""
    return path.relative_to(source).as_posix()


def parse(path: Path) -> ast.AST:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.AST, path: Path, source: Path = SOURCE) -> Iterator[str]:
    """Yield the dotted names that a file imports anywhere, also inside functions; relative ones made absolute."""
    package = [PACKAGE, *path.relative_to(source).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_under(module: str, package: str) -> bool:
    """Whether a dotted name is a package's or that of something in it."""
    return module == package or module.startswith(f"{package}.")


def import_graph(source: Path = SOURCE) -> dict[str, set[str]]:
    """Which files of the package each one imports, by names as of [`name_of`]."""
    files = sorted(source.rglob("*.py"))
    names = {}
    for path in files:
        parts = path.relative_to(source).with_suffix("").parts
        names[".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = name_of(path, source)
    graph = {}
    for path in files:
        imported = set()
        tree = parse(path)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            module, *parts = imported_modules(ast.Module([node], []), path, source)
            # What a package is asked for may be a file of its own.
            imported |= {names.get(part, names.get(module)) for part in parts or [module]}
        graph[name_of(path, source)] = imported - {None, name_of(path, source)}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Files that import each other, directly or over others: the graph's strongly connected components.

    The facade is left out: it names everything, for others.
    """
    graph = {name: imported - {FACADE} for name, imported in graph.items() if name != FACADE}

    def reach(start: str, edges: dict[str, set[str]]) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for after in edges[waiting.pop()] - seen:
                seen.add(after)
                waiting.append(after)
        return seen

    reached = {name: reach(name, graph) for name in graph}
    found = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]}
    return sorted(map(list, found))


def breaches(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports that the directions do not allow, as pairs of files."""
    return sorted((name, other) for name in graph for other in graph[name] if not _may_import(name, other))


def _may_import(name: str, other: str) -> bool:
    package, of_other = name.split("/")[0], other.split("/")[0]
    if "/" not in other:
        return other in FOR_EVERYONE or (other == FACADE and (package == "cli" or name in MAY_ASK_FACADE))
    if "/" not in name:
        # The public names, and the command line's entry.
        return name not in FOR_EVERYONE
    if package != of_other:
        return of_other in ALLOWED[package]
    if package != "generation" or name == "generation/__init__.py":
        return True
    part, target = (Path(one).parts[1].removesuffix(".py") for one in (name, other))
    if part == target:
        return True
    floor, below = (FLOOR_OF.get(one, -1) for one in (part, target))
    are_files = name.count("/") == other.count("/") == 1
    return min(floor, below) >= 0 and (below < floor or (below == floor and are_files))


def modules_per_folder(source: Path = SOURCE) -> dict[str, int]:
    """How many modules each folder holds itself, `__init__.py` left out."""
    files = [path for path in source.rglob("*.py") if path.name != "__init__.py"]
    return dict(sorted(Counter(name_of(path.parent, source) for path in files).items()))


def report(source: Path = SOURCE) -> tuple[str, bool]:
    """Everything above, in a few lines, and whether all of it is as it should be.

    Raises:
        `ValueError`: If there are no files.
    """
    graph, counts = import_graph(source), modules_per_folder(source)
    if not graph:
        raise ValueError(f"There are no Python files in {source}; give the package's folder, src/{PACKAGE}.")
    rings, against = circles(graph), breaches(graph)
    crowded = {folder: count for folder, count in counts.items() if count > MOST_MODULES}
    lines = [f"{len(graph)} files in {len(counts)} folders, {sum(map(len, graph.values()))} imports between files"]
    lines += ["modules per folder: " + ", ".join(f"{folder} {count}" for folder, count in counts.items())]
    lines += [f"folders over {MOST_MODULES}: {len(crowded)}", *(f"  {one}: {count}" for one, count in crowded.items())]
    lines += [f"circles between files: {len(rings)}", *("  " + ", ".join(ring) for ring in rings)]
    lines += [f"imports against the direction: {len(against)}", *(f"  {a} -> {b}" for a, b in against)]
    return "\n".join(lines), not (crowded or rings or against)


def main(arguments: list[str]) -> int:
    """Print the report; 1 if something is not as it should be."""
    try:
        text, is_fine = report(Path(arguments[0]) if arguments else SOURCE)
    except ValueError as error:
        text, is_fine = f"error: {error}", False
    print(text)
    return int(not is_fine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
