"""Where rounds cannot have fixed shapes: told before any work is done."""

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
from dspark_hf.modeling import DSparkModel
from dspark_hf.modeling.cache_name import CACHE_NAME
from dspark_hf.modeling.compiling import is_compiled

from .layers import decoder_layers

# Values of cache_implementation that ask for static rounds: transformers' own fixed shapes, and older names of them.
STATIC_CACHES = ("static", "hybrid", "sliding_window", "hybrid_chunked")


def check_static(
    asked: str,
    model: PreTrainedModel,
    drafter: Any,
    cache: Cache,
    generation_config: GenerationConfig,
    speculation: SpeculationConfig,
    synced_gpus: bool,
) -> None:
    """Check that rounds can have fixed shapes.

    Args:
        asked (`str`): The option that asks for it.
        model (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`] or another drafter): The drafter.
        cache (`Cache`): The cache that the prompt is to fill.
        generation_config (`GenerationConfig`): That of the call.
        speculation ([`SpeculationConfig`]): How to speculate.
        synced_gpus (`bool`): Whether other processes share the target.

    Raises:
        `ValueError`: If not; the message says what stands in the way.
    """
    name, modules, is_own = type(model).__name__, list(model.modules()), isinstance(drafter, DSparkModel)
    is_given = generation_config.return_dict_in_generate or getattr(cache, "_is_user_defined", False)
    parameters = inspect.signature(model.forward).parameters.values()
    takes_mask = any(one.name == "attention_mask" or one.kind is one.VAR_KEYWORD for one in parameters)
    for what, is_set in (
        (f"a cache that someone gets (return_dict_in_generate, {CACHE_NAME}), since rounds have buffers of their own",
         is_given),
        ("synced_gpus", synced_gpus),
        ("a target that is split over processes (tensor parallelism)", (getattr(model, "tp_size", None) or 1) > 1),
        (f"{name} with modules that accelerate brings to a device when they run (device_map, offloading)",
         any(hasattr(module, "_hf_hook") for module in modules)),
        (f"{name} with modules that are compiled already", any(map(is_compiled, modules))),
        ("the drafts of PromptLookup, which are made on the host", isinstance(drafter, PromptLookup)),
        ("prompt_lookup, whose drafts are made on the host", bool(speculation.prompt_lookup)),
        (f"{type(drafter).__name__}, which is none of the drafters that draft a whole block in one pass (DSpark, "
         "DFlash)", not is_own),
        (f"{name}, whose cache holds more than keys and values", not is_compactable(cache)),
        (f"{name}, which takes no attention_mask", not takes_mask),
        (f"{name} with another attention than sdpa or eager from transformers' interface, so that what was rejected "
         "cannot be masked", not can_swap(model)),
        (f"a drafter on {getattr(drafter, 'device', None)} and a target on {model.device}",
         is_own and drafter.device != model.device),
        (f"{name}, whose decoder layers do not stand in one list, or do not take {CACHE_NAME}",
         speculation.compile and decoder_layers(model) is None),
    ):  # fmt: skip
        if is_set:
            raise ValueError(f"{asked} together with a drafter is not supported for {what}. Leave one of the two out.")
    if speculation.compile:
        _check_compiler(model.device)


def _check_compiler(device: torch.device) -> None:
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError(
            f"compile=True needs a C++ compiler on the CPU, and {' or '.join(compilers)} is not found. Install one, "
            "name it in the environment variable CXX, or leave compile out."
        )
