"""What docstrings of the package say, read beside the signatures and raises that they describe.

python tests/docstrings.py [PART]     what is missing, in modules whose name has PART in it; exit status 1 if anything
"""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from types import FunctionType
from typing import Any

from torch import Tensor

import dspark_hf

_OTHERS = {"transformers", "torch", "datasets"}
# What a docstring gives as the shape of a tensor.
SHAPE = re.compile(r"`\([^`]*\)`|\bshapes?\b|`\[[^`]*\]`")


def public_members() -> Iterator[tuple[str, Any, str | None]]:
    """Name, object and docstring of every public class, function, method and property.

    A method that overrides another has that one's docstring, if it has none of its own.
    """
    for info in pkgutil.walk_packages(dspark_hf.__path__, "dspark_hf."):
        if info.name.endswith(".__main__"):
            continue
        module = importlib.import_module(info.name)
        yield info.name, module, module.__doc__
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            if inspect.isfunction(value):
                yield f"{info.name}.{name}", value, inspect.getdoc(value)
            elif inspect.isclass(value):
                yield f"{info.name}.{name}", value, value.__doc__
                yield from public_methods(value, f"{info.name}.{name}")


def public_methods(owner: type, prefix: str) -> Iterator[tuple[str, Any, str | None]]:
    """Name, function and docstring of what a class itself defines in public, names starting with `prefix`."""
    for name, value in vars(owner).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        # What dataclasses and transformers put into a class is not ours to describe.
        if inspect.isfunction(function) and not name.startswith("_") and function.__module__ == owner.__module__:
            yield f"{prefix}.{name}", function, inspect.getdoc(getattr(owner, name))


def sections(docstring: str) -> dict[str, str]:
    """The text of each section by its title; what stands before them under an empty one."""
    parts = re.split(r"^(Args|Attributes|Returns|Yields|Raises|Source)(?: and \w+)?:", inspect.cleandoc(docstring),
                     flags=re.MULTILINE)  # fmt: skip
    found = {"": parts[0]}
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        found[title] = found.get(title, "") + text
    return found


def documented_arguments(docstring: str, title: str = "Args") -> dict[str, str]:
    """The names in a docstring's section of arguments, with what is said of each."""
    section = re.split(r"^\S", sections(docstring).get(title, ""), maxsplit=1, flags=re.MULTILINE)[0]
    parts = re.split(r"^ {4}(\w[\w, ]*?) ?(?=[(:])", section, flags=re.MULTILINE)
    return {
        name.strip(): text
        for names, text in zip(parts[1::2], parts[2::2], strict=True)
        for name in names.split(",")
    }  # fmt: skip


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """What a function is given by name."""
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        return {}
    found, left_out = inspect.signature(function).parameters, ("self", "cls", "args", "kwargs")
    return {name: one for name, one in found.items() if name not in left_out and not name.startswith("_")}


def own_parameters(value: Any) -> dict[str, inspect.Parameter]:
    """Those of a function, or of a class when it is made, without those that what it overrides has and describes."""
    owner, name = value, "__init__"
    if not inspect.isclass(value):
        parts = value.__qualname__.split(".")
        owner, name = getattr(sys.modules[value.__module__], parts[0], None), parts[-1]
    if not inspect.isclass(owner):
        return parameters(value)
    found = parameters(vars(owner).get(name) if inspect.isclass(value) else value)
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        of_bases = {name for base in value.__mro__[1:] for name in vars(base).get("__annotations__", {})}
        return {name: one for name, one in found.items() if name not in of_bases}
    for base in owner.__mro__[1:]:
        member = vars(base).get(name)
        member = getattr(member, "__func__", member)
        if isinstance(member, FunctionType) and name != "__init__" and takes_anything(member):
            return {}
        found = {name: one for name, one in found.items() if name not in parameters(member)}
    return found


def takes_anything(function: FunctionType) -> bool:
    """Whether it is a method that others are to write, such as `forward` of torch."""
    kinds = [one.kind for one in inspect.signature(function).parameters.values() if one.name != "self"]
    return inspect.Parameter.VAR_POSITIONAL in kinds[:2]


def is_tensor(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is a tensor, and not something that has to do with some."""
    return parameter.annotation in (Tensor, Tensor | None, list[Tensor], Sequence[Tensor])


def is_command(function: Any) -> bool:
    """Whether the command line's help says what the arguments are."""
    return any("typer" in str(one.annotation) for one in inspect.signature(function).parameters.values())


@cache
def _errors_raised(code: Any) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    waiting, seen = list(getattr(tree.body[0], "body", [])), False
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue  # raises when it is called
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            seen |= getattr(node.exc.func, "id", None) == "ValueError"
        waiting += ast.iter_child_nodes(node)
    return seen


def raises_value_error(value: Any) -> bool:
    """Whether a function's own body raises a `ValueError`, or that of a class as it is made."""
    if inspect.isclass(value):
        own = [vars(value).get(name) for name in ("__init__", "__post_init__")]
        own = [one for one in own if isinstance(one, FunctionType) and one.__code__.co_filename != "<string>"]
        return any(_errors_raised(one.__code__) for one in own)
    function = inspect.unwrap(value)
    return inspect.isfunction(function) and _errors_raised(function.__code__)


def unsaid(value: Any, docstring: str) -> set[str]:
    """What a docstring lacks: names of arguments, `name: shape` of tensors, `Raises`."""
    if inspect.ismodule(value) or re.search(r"\b[Aa]s of \[`", docstring):
        return set()
    if inspect.isfunction(value) and is_command(value):
        return set()
    parts = sections(docstring)
    told = documented_arguments(docstring) | documented_arguments(docstring, "Attributes")
    missing = set()
    for name, one in own_parameters(value).items():
        text = told.get(name)
        if text is None:
            mentions = [span for span in re.finditer("`[^`]+`", docstring) if re.search(rf"\b{name}\b", span[0])]
            if not mentions:
                missing.add(name)
                continue
            text = docstring[mentions[0].start() :]
        if is_tensor(one) and not SHAPE.search(text):
            missing.add(f"{name}: shape")
    if raises_value_error(value) and "ValueError" not in parts.get("Raises", ""):
        missing.add("Raises")
    return missing


def names() -> set[str]:
    """What a link in a docstring may be called: names, alone or with their class, and whole paths in the package."""
    found = set()
    for info in pkgutil.walk_packages(dspark_hf.__path__, "dspark_hf."):
        if info.name.endswith(".__main__"):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            members = {*dir(value), *getattr(value, "__annotations__", {})} if inspect.isclass(value) else ()
            within = {name, *members, *(f"{name}.{member}" for member in members)}
            path = info.name.removeprefix("dspark_hf.")
            found |= within | {f"{path}.{one}" for one in within} | {f"dspark_hf.{path}.{one}" for one in within}
    return found


def loose_links() -> set[tuple[str, str]]:
    """Links of docstrings that lead to nothing, each with the name of what has the docstring."""
    known = names()
    links = {(name, link) for name, _, doc in public_members() for link in re.findall(r"\[`~?([^`]+)`\]", doc or "")}
    return {one for one in links if one[1] not in known and one[1].split(".")[0] not in _OTHERS}


def report(part: str = "") -> dict[str, set[str]]:
    """What is unsaid, by the name of what should say it, in modules that have `part` in their name."""
    found = {name: unsaid(value, doc or "") for name, value, doc in public_members() if part in name}
    return {name: missing for name, missing in found.items() if missing}


if __name__ == "__main__":
    found = report(*sys.argv[1:2])
    for name, missing in found.items():
        sys.stdout.write(f"{name}: {', '.join(sorted(missing))}\n")
    sys.exit(bool(found))
