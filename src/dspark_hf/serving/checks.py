"""What continuous batching with a drafter cannot do: told before any work is done."""

import copy
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from dspark_hf.generation.checks import check_drafter, check_mode, check_options
from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.generation.prompt_lookup import PromptLookup

# Options of generate() that a batch of requests would ignore, and their values where nobody sets them.
_IGNORED = {
    "max_time": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "begin_suppress_tokens": (None,),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "output_scores": (None, False),
    "output_logits": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
}


def check_request_options(generation_config: GenerationConfig) -> None:
    """Refuse options that requests of a batch cannot have.

    Args:
        generation_config (`GenerationConfig`): The options.

    Raises:
        `ValueError`: If there is one, by its name.
    """
    for option, unset in _IGNORED.items():
        value = getattr(generation_config, option, None)
        if value not in unset:
            raise ValueError(
                f"{option}={value!r} is not supported in continuous batching: leave it out, or use generate(), which "
                "has it."
            )


def check_batching(
    model: PreTrainedModel, drafter: Any, generation_config: GenerationConfig, speculation: SpeculationConfig
) -> None:
    """Look whether requests of a target can be batched with a drafter.

    Args:
        model (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`]): The drafter.
        generation_config (`GenerationConfig`): The options of all requests.
        speculation ([`SpeculationConfig`]): How to speculate.

    Raises:
        `ValueError`: If they cannot, with the reason.
    """
    check_drafter(drafter, speculation)
    if isinstance(drafter, PromptLookup):
        raise ValueError("Continuous batching drafts with a model, and this is a PromptLookup: pass a drafter.")
    for name, unset, why in (
        ("prompt_lookup", (None, False), "drafts are the drafter's alone there"),
        ("compile", (False,), "steps have other sizes each time"),
        ("measure_time", (None, False), "nothing is timed there"),
        ("record_drafts", (False,), "it would grow with every request"),
    ):
        value = getattr(speculation, name)
        if not any(value is one for one in unset):
            raise ValueError(f"SpeculationConfig({name}={value!r}) is not supported in continuous batching: {why}.")
    check_request_options(generation_config)
    check_mode(_mode(generation_config), generation_config)
    # The paged cache takes the place of the one that this option asks for.
    with_cache = copy.copy(generation_config)
    with_cache.use_cache = True
    check_options(model, with_cache)


def _mode(generation_config: GenerationConfig) -> Any:
    alone = copy.copy(generation_config)
    alone.num_return_sequences = 1
    return alone.get_generation_mode()
