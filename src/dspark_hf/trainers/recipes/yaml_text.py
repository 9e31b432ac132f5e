"""YAML as recipes are written in it."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML that reads 6e-4 as a number, and `no` (as in `save_strategy: no`) as a word."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """What a text says.

    Args:
        text (`str`): YAML.
        where (`str`): Where it stands, in messages.

    Returns:
        What YAML is made of: `dict`, `list`, `str`, numbers, `bool` or None.

    Raises:
        `ValueError`: If it is no YAML, or nested deeper than Python reads.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError(f"{where} is not readable YAML: it is nested too deeply.") from None
    # Dates, numbers and tags that are none end in whatever Python makes of them.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not readable YAML: {' '.join(str(error).split())}") from error
