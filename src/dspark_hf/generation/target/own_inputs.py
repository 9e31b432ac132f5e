"""Targets whose inputs grow in a way of their own."""

from typing import Any

from transformers import GenerationMixin


def grows_own_inputs(model: Any) -> bool:
    """Whether a target `model` overrides what transformers does to its inputs from token to token."""
    # Private, and the only place where the difference shows.
    name = "_update_model_kwargs_for_generation"
    return getattr(type(model), name) is not getattr(GenerationMixin, name)
