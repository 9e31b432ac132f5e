"""The way into speculative decoding: what is asked for is checked, then the loop runs."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dspark_hf.modeling.cache_name import CACHE_NAME

from .checks import (
    check_cache,
    check_chunks,
    check_drafter,
    check_mode,
    check_options,
    check_synced,
)
from .config import SpeculationConfig
from .decode import SpeculativeLoop
from .request import Request
from .static.graphs import why_not_captured
from .static.possible import STATIC_CACHES, NotStatic, asks_for_static, check_by_itself, check_static
from .target.layout import PromptLayout


@torch.no_grad()
def speculative_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: Any = None,
    speculation: SpeculationConfig | None = None,
    streamer: Any = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Generate with a drafter: the target's output, in fewer of its forward passes.

    It is what `model.generate(..., assistant_model=drafter)` runs, and works as a decoding method on its own:
    `model.generate(..., custom_generate=speculative_generate, drafter=drafter)`. On that way transformers keeps
    `streamer` to itself after the prompt; bind it: `functools.partial(speculative_generate, streamer=streamer)`.

    Args:
        model (`PreTrainedModel`): The target.
        input_ids (`torch.LongTensor` of shape `(batch, prompt)`): The prompt.
        logits_processor (`LogitsProcessorList`): Processors that shape the target's distribution.
        stopping_criteria (`StoppingCriteriaList`): When to stop; exact to the token.
        generation_config (`GenerationConfig`): The prepared config.
        drafter ([`DSparkModel`] or [`PromptLookup`], *optional*): The drafter; bound to `model` if it is not yet. May
            be left out where `speculation` has a `prompt_lookup`.
        speculation ([`SpeculationConfig`], *optional*): How to speculate.
        streamer (`BaseStreamer`, *optional*): Gets tokens as they are made, see [`Transcript`].
        synced_gpus (`bool`, *optional*): Whether the target is sharded over processes, so that rounds must go on until
            all have ended. Each process needs a whole drafter.
        model_kwargs: What `generate()` prepared for the target's forward passes, the cache among it.

    Returns:
        `torch.LongTensor` of shape `(batch, tokens)`, or `GenerateDecoderOnlyOutput` if `return_dict_in_generate` is
        set. `drafter.last_stats` tells what happened ([`SpeculationStats`]).

    Raises:
        `ValueError`: If drafter and target do not fit, or something is asked for that is not supported.

    Source: Leviathan et al. 2023, algorithm 1 (https://arxiv.org/abs/2211.17192); DSpark, section 3
    (https://arxiv.org/abs/2607.05147).
    """
    speculation = SpeculationConfig() if speculation is None else speculation
    drafter = (getattr(speculation, "prompt_lookup", None) or None) if drafter is None else drafter
    check_drafter(drafter, speculation)
    check_mode(generation_config.get_generation_mode(), generation_config)
    check_options(model, generation_config)
    if synced_gpus:
        check_synced(model, drafter, generation_config)
    if generation_config.cache_implementation in STATIC_CACHES:
        # Without the seam, which sees to it that the prompt fills a cache that grows.
        model_kwargs[CACHE_NAME] = DynamicCache(config=model.config.get_text_config(decoder=True))
    check_cache(model, model_kwargs, generation_config)
    asked = asks_for_static(generation_config, speculation)
    if asked is not None:
        check_static(asked, model, drafter, model_kwargs[CACHE_NAME], generation_config, speculation)
    layout = PromptLayout.of(input_ids, model_kwargs, generation_config)
    check_chunks(layout, model_kwargs, generation_config)
    if not drafter.is_bound_to(model):
        drafter.bind(model, check_name=speculation.check_target)
    request = Request(
        model, drafter, speculation, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs,
        streamer, synced_gpus, asked is not None,
    )  # fmt: skip
    if asked is None and speculation.static == "auto":
        request = _by_itself(request)
    return SpeculativeLoop(request, layout).run()


def _by_itself(request: Request) -> Request:
    """The same with static rounds, where they can be had and nobody asked for them."""
    try:
        check_by_itself(request.device, why_not_captured(request))
        check_static(
            "static='auto'", request.model, request.drafter, request.cache, request.generation_config,
            request.speculation,
        )  # fmt: skip
    except NotStatic as error:
        return replace(request, why_ragged=error.what)
    return replace(request, is_static=True, may_be_ragged=True)
