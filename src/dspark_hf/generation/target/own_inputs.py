"""Targets whose inputs grow in a way of their own, or whose masks are not those of their cache."""

import sys
from typing import Any

from transformers import DynamicCache, GenerationMixin


def grows_own_inputs(model: Any) -> bool:
    """Whether a target `model` overrides what transformers does to its inputs from token to token."""
    # Private, and the only place where the difference shows.
    name = "_update_model_kwargs_for_generation"
    return getattr(type(model), name) is not getattr(GenerationMixin, name)


def unmasked_window(model: Any) -> int | None:
    """Tokens that the cache of a target `model` keeps where its masks know of no window; `None` where they do.

    So it is with Moshi, and with a Llama whose config has a field of other families. Prompts see everything there, and
    single tokens what the cache holds, so a block would see more than they do.
    """
    config = model.config.get_text_config(decoder=True)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if windows == [None, None] or not any(
        getattr(one, "is_sliding", False) for one in DynamicCache(config=config).layers
    ):
        return None
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    files = [vars(sys.modules[name]) for name in {cls.__module__ for cls in classes} if ".modeling_" in name]
    # By the functions of transformers that its files make masks with.
    made_with = {name for names in files for name in names if name.startswith("create_") and "mask" in name}
    return next(filter(None, windows), None) if made_with == {"create_causal_mask"} else None
