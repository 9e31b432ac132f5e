"""Targets whose inputs grow in a way of their own, or whose masks are not those of their cache."""

import sys
from typing import Any

from transformers import GenerationMixin


def grows_own_inputs(model: Any) -> bool:
    """Whether a target `model` overrides what transformers does to its inputs from token to token."""
    # Private, and the only place where the difference shows.
    name = "_update_model_kwargs_for_generation"
    return getattr(type(model), name) is not getattr(GenerationMixin, name)


def slides_unmasked(model: Any) -> bool:
    """Whether the cache of a target `model` slides, and its masks do not, as with Moshi.

    Its prompts see everything and its single tokens what the cache holds, so a block would see more than they do.
    """
    if getattr(model.config.get_text_config(decoder=True), "sliding_window", None) is None:
        return False
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    files = [vars(sys.modules[name]) for name in {cls.__module__ for cls in classes} if ".modeling_" in name]
    # By the functions of transformers that its files make masks with.
    made_with = {name for names in files for name in names if name.startswith("create_") and "mask" in name}
    return made_with == {"create_causal_mask"}
