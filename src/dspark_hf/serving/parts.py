"""Parts of transformers that may change from release to release, and are looked for before they are leaned on."""

import inspect
from typing import Any

TESTED = "5.24"


def check_parts(what: str, needed: dict[Any, dict[str, set[str]]]) -> None:
    """Look whether methods are there, with the parameters that are passed on or read.

    Args:
        what (`str`): What rests on them.
        needed (`dict`): For each class its methods, and the parameters of each.

    Raises:
        `RuntimeError`: If one is not.
    """
    for home, methods in needed.items():
        for name, parameters in methods.items():
            method = getattr(home, name, None)
            missing = set() if method is None else parameters - set(inspect.signature(method).parameters)
            if method is None or missing:
                told = "is missing" if method is None else f"has no {sorted(missing)}"
                raise RuntimeError(
                    f"{what} of this version of transformers does not take drafters: {home.__name__}.{name} {told}. "
                    f"Install one that it is tested with: pip install 'transformers=={TESTED}.*'."
                )
