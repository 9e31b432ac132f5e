"""Whether rounds are static: who asks for it, and where they cannot be, which is told before any work is done."""

import inspect
import os
import shutil
from typing import Any

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.generation.prompt_lookup import PromptLookup
from dspark_hf.generation.rollback.compaction import is_compactable
from dspark_hf.generation.target.row_attention import can_swap
from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.cache_name import CACHE_NAME
from dspark_hf.modeling.compiling import is_compiled

from .layers import compilable_layers

# Values of cache_implementation that ask for static rounds: transformers' own fixed shapes, and older names of them.
STATIC_CACHES = ("static", "hybrid", "sliding_window", "hybrid_chunked")
# Where `SpeculationConfig(static="auto")` takes them: where launches are the cost, and rounds are captured.
BY_ITSELF_ON = ("cuda",)
# Most of the free memory that buffers take which nobody asked for.
_SHARE_OF_ROOM = 0.25


class NotStatic(ValueError):
    """Rounds cannot be static.

    Args:
        what (`str`): What stands in the way.
        asked (`str`, *optional*): The option that asks for them.

    Attributes:
        what (`str`): As given.
    """

    def __init__(self, what: str, asked: str = "static rounds"):
        super().__init__(f"{asked} together with a drafter is not supported for {what}. Leave one of the two out.")
        self.what = what


def asks_for_static(generation_config: GenerationConfig, speculation: SpeculationConfig) -> str | None:
    """The option that asks for static rounds, as it was written; None where none does, or they are turned off.

    Args:
        generation_config (`GenerationConfig`): That of the call.
        speculation ([`SpeculationConfig`]): How to speculate.
    """
    if speculation.static is False:
        return None
    # The seam moves the name, so that the prompt fills a cache that grows.
    asked = getattr(generation_config, "static_rounds", None)
    if asked is None and generation_config.cache_implementation in STATIC_CACHES:
        asked = generation_config.cache_implementation
    if asked is not None:
        return f"cache_implementation={asked!r}"
    if speculation.static is True:
        return "static=True"
    return "compile=True" if speculation.compile else None


def check_static(
    asked: str,
    model: PreTrainedModel,
    drafter: Any,
    cache: Cache,
    generation_config: GenerationConfig,
    speculation: SpeculationConfig,
) -> None:
    """Check that rounds can have fixed shapes.

    Args:
        asked (`str`): The option that asks for it.
        model (`PreTrainedModel`): The target.
        drafter ([`DraftModel`] or [`PromptLookup`]): The drafter.
        cache (`Cache`): The cache that the prompt is to fill.
        generation_config (`GenerationConfig`): That of the call.
        speculation ([`SpeculationConfig`]): How to speculate.

    Raises:
        [`NotStatic`]: If not; the message says what stands in the way.
        `ValueError`: If there is no compiler, and layers are to be compiled.
    """
    name, is_own = type(model).__name__, isinstance(drafter, DraftModel)
    is_given = generation_config.return_dict_in_generate or getattr(cache, "_is_user_defined", False)
    parameters = inspect.signature(model.forward).parameters.values()
    takes_mask = any(one.name == "attention_mask" or one.kind is one.VAR_KEYWORD for one in parameters)
    for what, is_set in (
        (f"a cache that someone gets (return_dict_in_generate, {CACHE_NAME}), since rounds have buffers of their own",
         is_given),
        (f"{name} with modules that are compiled already", any(map(is_compiled, model.modules()))),
        (f"{type(drafter).__name__}, which is none of this library's drafters, whose contexts can stand in fixed "
         "buffers", not is_own and not isinstance(drafter, PromptLookup)),
        (f"{name}, whose cache holds more than keys and values", not is_compactable(cache)),
        (f"{name}, which takes no attention_mask", not takes_mask),
        (f"{name} with another attention than sdpa or eager from transformers' interface, so that what was rejected "
         "cannot be masked", not can_swap(model)),
        (f"a drafter on {getattr(drafter, 'device', None)} and a target on {model.device}",
         is_own and drafter.device != model.device),
        (f"{name}, whose decoder layers do not stand in one list, or do not take {CACHE_NAME}",
         speculation.compile and compilable_layers(model) is None),
    ):  # fmt: skip
        if is_set:
            raise NotStatic(what, asked)
    if speculation.compile:
        _check_compiler(model.device)


def check_by_itself(device: torch.device, why_not_captured: str | None) -> None:
    """Check that static rounds are worth taking where nobody has asked for them.

    Args:
        device (`torch.device`): The target's.
        why_not_captured (`str`, *optional*): What keeps rounds from being captured.

    Raises:
        [`NotStatic`]: If not.
    """
    if device.type not in BY_ITSELF_ON:
        raise NotStatic(f"a target on a device that is no {' or '.join(BY_ITSELF_ON)} device ({device})")
    if why_not_captured is not None:
        raise NotStatic(f"rounds that are not captured ({why_not_captured})")


def check_room(num_bytes: int, device: torch.device) -> None:
    """Check that buffers take no more than a share of the free memory.

    Args:
        num_bytes (`int`): What they take.
        device (`torch.device`): Where.

    Raises:
        [`NotStatic`]: If they do.
    """
    free = _free_bytes(device)
    if num_bytes > _SHARE_OF_ROOM * free:
        raise NotStatic(
            f"texts whose buffers take {num_bytes / 2**30:.2f} GiB, more than {_SHARE_OF_ROOM:.0%} of the "
            f"{free / 2**30:.2f} GiB that are free on {device}"
        )


def _free_bytes(device: torch.device) -> int:
    # What torch holds for tensors to come is free, too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def why_not_here(model: PreTrainedModel, synced_gpus: bool) -> str | None:
    """How a target is placed that static rounds cannot serve; None where they can.

    Args:
        model (`PreTrainedModel`): The target.
        synced_gpus (`bool`): Whether other processes share it.
    """
    if synced_gpus:
        return "synced_gpus keeps processes in step"
    if (getattr(model, "tp_size", None) or 1) > 1:
        return "the target is split over processes (tensor parallelism)"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "accelerate brings modules of the target to a device when they run (device_map, offloading)"
    return None


def _check_compiler(device: torch.device) -> None:
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError(
            f"compile=True needs a C++ compiler on the CPU, and {' or '.join(compilers)} is not found. Install one, "
            "name it in the environment variable CXX, or leave compile out."
        )
