"""Adapters of a model, switched off for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def has_adapter(model: Any) -> bool:
    """Whether a `model` has one: a `PeftModel`, or one that transformers itself loaded with its adapter."""
    return hasattr(model, "disable_adapter") or bool(getattr(model, "_hf_peft_config_loaded", False))


@contextmanager
def adapter_off(model: Any, is_off: bool = True) -> Iterator[None]:
    """A block in which a `model` is without its adapter; as it is, unless `is_off`."""
    if not is_off:
        yield
    elif hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield
    else:
        model.disable_adapters()
        try:
            yield
        finally:
            model.enable_adapters()
