"""The model inside wrappers."""

from typing import Any


def unwrap(model: Any) -> Any:
    """The model that runs in the end: that inside a `model` of `torch.compile` or PEFT, any other as it is."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif hasattr(type(model), "get_base_model"):
            model = model.get_base_model()
        else:
            return model
