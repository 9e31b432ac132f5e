"""A drafter that stays with its target."""

from typing import Any

from transformers import PreTrainedModel

from dspark_hf.modeling.wrappers import unwrap

from .checks import check_drafter
from .config import SpeculationConfig


def attach_drafter(model: PreTrainedModel, drafter: Any, check_target: bool = True) -> PreTrainedModel:
    """Make `model.generate()` use a drafter without being told to.

    The target stays as it is: its parameters, state dict and `save_pretrained` do not know of the drafter, which is
    kept as the plain attribute `model.drafter`. `generate(..., speculation=False)` goes without it for one call. Deep
    copies and pickles of the target have a drafter of their own.

    Args:
        model (`PreTrainedModel`): The target. Of a PEFT or compiled wrapper, the model inside is the target.
        drafter ([`DSparkModel`]): The drafter.
        check_target (`bool`, *optional*, defaults to `True`): Whether a drafter made for another target is refused.

    Returns:
        `PreTrainedModel`: `model`.

    Raises:
        `ValueError`: If the two do not fit, or `drafter` is none, or the target has an attribute of that name.
    """
    check_drafter(drafter, SpeculationConfig())
    target = unwrap(model)
    if attached_drafter(target) is None and hasattr(target, "drafter"):
        raise ValueError(
            f"{type(target).__name__} has an attribute `drafter` of its own, which attaching would hide. Pass the "
            "drafter to generate() as assistant_model instead."
        )
    drafter.bind(target, check_name=check_target)
    # Past nn.Module.__setattr__, which would register the drafter as a submodule.
    object.__setattr__(target, "drafter", drafter)
    return model


def detach_drafter(model: PreTrainedModel) -> Any:
    """Undo [`attach_drafter`].

    Args:
        model (`PreTrainedModel`): The target.

    Returns:
        [`DSparkModel`]: The drafter.

    Raises:
        `ValueError`: If no drafter is attached.
    """
    target = unwrap(model)
    drafter = attached_drafter(target)
    if drafter is None:
        raise ValueError(
            f"{type(target).__name__} has no attached drafter; attach one with attach_drafter(model, drafter)."
        )
    del target.drafter
    if hasattr(target, "become_plain_target"):
        # As a DSparkForCausalLM, which is nothing without a drafter.
        target.become_plain_target()
    return drafter


def attached_drafter(model: PreTrainedModel) -> Any:
    """The drafter that stays with a `model`, as an attribute or a submodule, or None."""
    drafter = getattr(model, "drafter", None)
    return drafter if getattr(drafter, "is_drafter", False) else None
