"""Whom a name in a repository may lead to: trust in one repository is not trust in those that it names."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspark_hf.messages import shown
from dspark_hf.publishing.cards.facts import is_repo_name

# Messages of other libraries quote it, too.
_LONGEST_NAME = 1000


def check_named(name: str, by: str, asked: str | None = None) -> None:
    """Check what a repository or folder names as the place of its target or drafter.

    Args:
        name (`str`): The name that stands there.
        by (`str`): Where it stands.
        asked (`str`, *optional*): The name that the user gives, if any.

    Raises:
        `ValueError`: If the two differ, the name is none, or a repository of the Hub names a folder of this machine.
    """
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"{by} names {shown(name)}, {len(name)} characters, which can be no place of a model.")
    if asked is not None and asked != name:
        raise ValueError(f"{by} names {shown(name)}, not {shown(asked)}. Check which you want, and name that.")
    if asked is not None or Path(by).is_dir():
        return
    if not is_repo_name(name):
        raise ValueError(
            f"{by} is a repository, and names {shown(name)}, which can be no repository: it may not lead to folders "
            "of this machine. Load the two yourself and join them."
        )
    if Path(name).exists():
        raise ValueError(
            f"{by} names the repository {name}, and something of that name lies in the working folder, which would be "
            "read in its place. Load it from another working folder, or load the two yourself and join them."
        )


@contextmanager
def trusting(
    named: Collection[str | None], repo_or_dir: str, config: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Arguments with which a model may be loaded: `trust_remote_code` stays for what the user named.

    Args:
        named (`Collection[str]`): Repositories and folders that the user named.
        repo_or_dir (`str`): The one that is loaded.
        config (`Mapping`): `config.json` of the repository that the user asked for.
        arguments (`Mapping`): Arguments of `from_pretrained`.

    Raises:
        `ValueError`: If code of any other repository would have to run.
    """
    if not arguments.get("trust_remote_code"):
        yield dict(arguments)
        return
    code = config.get("auto_map")
    references = [one for value in (code.values() if isinstance(code, dict) else ()) for one in _as_list(value)]
    others = {one.split("--")[0] for one in references if isinstance(one, str) and "--" in one} - set(named)
    if repo_or_dir in named and others:
        raise ValueError(_refusal(named, sorted(others)[0]))
    try:
        yield dict(arguments) if repo_or_dir in named else {**arguments, "trust_remote_code": False}
    except ValueError as error:
        if repo_or_dir in named or "trust_remote_code" not in str(error):
            raise
        raise ValueError(_refusal(named, repo_or_dir)) from error


def _refusal(named: Collection[str | None], other: str) -> str:
    first = next(iter(named))
    return (
        f"{first} needs code of {other}, and trust_remote_code=True was said of {first}. Read that code; to let it "
        f"run, name its repository too: from_pretrained({first!r}, target={other!r}, trust_remote_code=True)."
    )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
