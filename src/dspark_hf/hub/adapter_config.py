"""What an adapter's config may ask for, looked at before PEFT makes anything of it."""

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from dspark_hf.messages import shown

# PEFT matches these against the names of all modules.
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
_LONGEST_PATTERN, _MOST_REPEATS = 500, 4
# What weights start from is overwritten; these would change the drafter below, or take a time that the file sets.
_STARTS = (None, True, False, "gaussian", "orthogonal", "olora", "eva", "pissa")


def check_config(config: Mapping[str, Any], path: str) -> None:
    """Check the fields that PEFT would compute, allocate or search by.

    Args:
        config (`Mapping`): What `adapter_config.json` holds.
        path (`str`): That file, in messages.

    Raises:
        `ValueError`: If a field is not what it should be; the message names file and field.
    """
    from peft import PeftType

    def check(is_right: bool, name: str, wanted: str, value: Any) -> None:
        if not is_right:
            raise ValueError(f"{path}: {name} must be {wanted}, got {shown(value)}.")

    kind = config.get("peft_type")
    check(isinstance(kind, str) and kind in set(PeftType), "peft_type", "a method of the installed PEFT", kind)
    if config.get("r") is not None:
        check(_is_rank(config["r"]), "r", "a whole number above 0", config["r"])
    for name, wanted, is_right in (
        ("rank_pattern", "whole numbers above 0 by module", _is_rank),
        ("alpha_pattern", "numbers by module", _is_number),
    ):
        value = config.get(name) or {}
        check(isinstance(value, dict) and all(map(is_right, value.values())), name, wanted, value)
        for pattern in value:
            _check_pattern(pattern, name, path)
    if config.get("lora_alpha") is not None:
        check(_is_number(config["lora_alpha"]), "lora_alpha", "a number", config["lora_alpha"])
    for name in (*_PATTERNS, "modules_to_save"):
        value = config.get(name)
        if isinstance(value, str) and name in _PATTERNS:
            _check_pattern(value, name, path)
        else:
            is_right = value is None or isinstance(value, list) and all(isinstance(one, str) for one in value)
            check(is_right, name, "names of modules", value)
        for pattern in value if name == "layers_pattern" and isinstance(value, list) else ():
            _check_pattern(pattern, name, path)
    # Layers that stand twice have no features of their own.
    check(not config.get("layer_replication"), "layer_replication", "left out", config.get("layer_replication"))
    start = config.get("init_lora_weights")
    is_short = isinstance(start, str) and re.fullmatch(r"pissa_niter_\d{1,2}", start)
    check(is_short or start in _STARTS, "init_lora_weights", f"one of {_STARTS}", start)


def _check_pattern(pattern: str, name: str, path: str) -> None:
    """Refuse regular expressions whose search can take for ever: repeated groups, and many repeats."""
    is_bounded = len(pattern) <= _LONGEST_PATTERN and len(re.findall("[*+?]", pattern)) <= _MOST_REPEATS
    if not is_bounded or "{" in pattern or re.search(r"\)[*+?]", pattern):
        raise ValueError(
            f"{path}: {name} is an expression whose search may not end, got {shown(pattern)}. Give a list of modules' "
            f"names, or an expression without repeated groups and with at most {_MOST_REPEATS} repeats."
        )


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
