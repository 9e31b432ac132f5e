"""Whose config.json it is: a drafter's, or that of any other model."""

from collections.abc import Mapping
from typing import Any

import transformers

# What only drafters have, of one packaging or another.
_FIELDS = {"target_layer_ids", "dflash_config", "dspark_config", "speculators_model_type"}


def is_of_drafter(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, of any packaging, is that of a drafter which transformers has no class for.

    Its `model_type` is that of its layers, so transformers' auto classes would take it for an ordinary model.

    Args:
        config (`Mapping`): The fields.
    """
    architectures = config.get("architectures")
    # A list in every config that is whole; what else it may be is for its reader to refuse.
    architectures = architectures if isinstance(architectures, list) else []
    if any(hasattr(transformers, str(name)) for name in architectures):
        return False
    is_named = any("Eagle3" in str(name) for name in architectures)
    return is_named or any(config.get(name) is not None for name in _FIELDS)
