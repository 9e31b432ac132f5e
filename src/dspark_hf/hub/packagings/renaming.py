"""Names of tensors on their way from a file to a drafter."""

import re
from collections.abc import Iterable, Mapping

from dspark_hf.messages import shown
from dspark_hf.publishing.weight_index import HOLDER, WRAPPERS


def without_wrappers(names: Iterable[str], where: str) -> dict[str, str]:
    """Each name, and what it is without the parts that wrappers put into it.

    Args:
        names (`Iterable[str]`): Names of a checkpoint's tensors.
        where (`str`): Where the checkpoint lies, for messages.

    Raises:
        `ValueError`: If two tensors would have the same name.
    """
    plain: dict[str, str] = {}
    for name in sorted(names):
        parts = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        short = parts.removeprefix(HOLDER)
        if short in plain:
            raise ValueError(
                f"{where} holds {shown(plain[short])} and {shown(name)}, which without the parts that wrappers put "
                "into names are the same tensor. Save the model inside the wrapper (accelerator.unwrap_model), once."
            )
        plain[short] = name
    return {name: short for short, name in plain.items()}


def key_mapping(names: Mapping[str, str]) -> dict[str, str]:
    """A `key_mapping` for `from_pretrained`, of those of `names`, new by old, that change."""
    return {f"^{re.escape(old)}$": new for old, new in names.items() if old != new}
