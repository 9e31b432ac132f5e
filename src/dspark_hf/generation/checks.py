"""What speculative decoding cannot do: told before any work is done."""

import inspect
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from dspark_hf.modeling.cache_name import CACHE_NAME

from .config import SpeculationConfig
from .prompt_lookup import PromptLookup
from .rollback.rewinding import compresses, is_rewindable, keeps_unknown_state, replays
from .target.layout import PromptLayout
from .target.own_inputs import grows_own_inputs, unmasked_window
from .target.peft_hooks import hook_arguments, prepares_elsewhere
from .target.rotary import varies_with_length

# Options that would be ignored or break exactness, their values where nobody sets them, and what to do instead.
_UNSUPPORTED = (
    ("use_cache", (True,), "set it to True"),
    ("prompt_lookup_num_tokens", (None,), "leave it out, and use SpeculationConfig(prompt_lookup=True)"),
    ("max_matching_ngram_size", (None,), "leave it out, and use PromptLookup(max_ngram=...)"),
    ("num_assistant_tokens", (None, 20), "leave it out, and use SpeculationConfig(max_draft_len=...)"),
    ("num_assistant_tokens_schedule", (None, "constant"),
     "leave it out, and use SpeculationConfig(confidence_threshold=...)"),
    ("assistant_confidence_threshold", (None, 0.4),
     "leave it out, and use SpeculationConfig(confidence_threshold=...)"),
    ("assistant_lookbehind", (None, 10), "leave it out: the drafter shares the target's vocabulary"),
    ("target_lookbehind", (None, 10), "leave it out: the drafter shares the target's vocabulary"),
    ("assistant_ensemble_weight", (None,), "leave it out: it changes the output, and a drafter never does"),
    ("assistant_early_exit", (None,), "pass one drafter only"),
    ("use_mtp", (None, False), "pass one drafter only"),
    ("speculation_type", (None,), "leave it out: the drafter says how it drafts"),
)  # fmt: skip
_OWN_MODES = (GenerationMode.ASSISTED_GENERATION, GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def check_drafter(drafter: Any, speculation: SpeculationConfig) -> None:
    """Check that `drafter` is one and can do what `speculation` asks for.

    Raises:
        `ValueError`: If not, or `speculation` is none.
    """
    is_class = isinstance(drafter, type)
    if is_class or not getattr(drafter, "is_drafter", False):
        raise ValueError(
            f"drafter must be a drafter of this library, e.g. AutoDrafter.from_pretrained(...), got "
            f"{f'the class {drafter.__name__}' if is_class else type(drafter).__name__}."
        )
    if not isinstance(speculation, SpeculationConfig):
        instead = f" Write SpeculationConfig(**{speculation!r})." if isinstance(speculation, dict) else ""
        raise ValueError(
            f"speculation must be a SpeculationConfig, None for the defaults or, without a drafter, False, got "
            f"{speculation!r}.{instead}"
        )
    if isinstance(drafter, PromptLookup):
        if speculation.prompt_lookup not in (None, drafter):
            raise ValueError(
                "SpeculationConfig(prompt_lookup=...) says whether lookup goes beside a drafter, and the drafter here "
                "is a PromptLookup itself: leave one of them out."
            )
        return


def check_mode(mode: GenerationMode, generation_config: GenerationConfig) -> None:
    """Check that the decoding `mode` which the `generation_config` leads to is greedy search or sampling.

    Raises:
        `ValueError`: If it is another.
    """
    if mode not in _OWN_MODES or (generation_config.num_beams or 1) > 1:
        raise ValueError(
            f"A drafter speeds up greedy search and sampling, but these arguments ask for "
            f"{mode.value.replace('_', ' ')} (num_beams={generation_config.num_beams}). Set num_beams=1 and leave out "
            "what selects that mode, or generate without a drafter (without one that is attached: speculation=False)."
        )


def check_options(model: PreTrainedModel, generation_config: GenerationConfig) -> None:
    """Check that the target can verify blocks, and that nothing is asked for that cannot be had.

    Args:
        model (`PreTrainedModel`): The target.
        generation_config (`GenerationConfig`): That of the call.

    Raises:
        `ValueError`: If not; the message names the model or the option, and what to do.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"A drafter needs a decoder-only target, and {name} is an encoder-decoder; drop the drafter.")
    # GPT-NeoX is a decoder whatever its config says: none of its modules asks for it.
    has_encoder_config = getattr(model.config, "is_decoder", True) is False
    if has_encoder_config and any(getattr(module, "is_decoder", True) is False for module in model.modules()):
        raise ValueError(
            f"{name} is an encoder (is_decoder=False in its config), whose tokens see what stands behind them, so "
            "drafts would change what they are to be verified by. Load it with is_decoder=True, or generate without a "
            "drafter."
        )
    text_config = model.config.get_text_config(decoder=True)
    for field, values in (("use_bidirectional_attention", (True, "all")), ("is_causal", (False,))):
        # PaliGemma means its prompt with it: behind that its masks are causal.
        if getattr(text_config, field, None) in values and model.config.model_type != "paligemma":
            raise ValueError(
                f"Tokens of {name} see what stands behind them ({field}={getattr(text_config, field)!r} in its "
                "config), so drafts would change what they are to be verified by; generate without a drafter."
            )
    if keeps_unknown_state(model):
        raise ValueError(
            f"{name} keeps a state that rejected tokens cannot be taken out of, so it cannot verify drafts; "
            "generate without a drafter."
        )
    if model.config.model_type == "prophetnet":
        raise ValueError(
            f"{name} takes one token at a time behind its cache, so it cannot verify drafts; generate without a "
            "drafter."
        )
    # PaliGemma only says that answers are not part of the prompt, which nothing reads behind the prompt.
    if grows_own_inputs(model) and model.config.model_type != "paligemma":
        raise ValueError(
            f"{name} changes its inputs from token to token in a way of its own (it overrides "
            "_update_model_kwargs_for_generation), so it cannot be given several tokens at once; generate without a "
            "drafter."
        )
    if (window := unmasked_window(model)) is not None:
        raise ValueError(
            f"The cache of {name} slides by {window} tokens, and its masks do not, so in a block "
            "tokens would see more than they do alone; generate without a drafter."
        )
    names = set(inspect.signature(model.forward).parameters)
    if CACHE_NAME not in names and (others := names & {"cache", "past_key_values"}):
        # As the code of a repository that was written for another release.
        raise ValueError(
            f"{name} takes its cache as `{others.pop()}`, but this release of transformers hands it over as "
            f"`{CACHE_NAME}`, so generate() goes wrong with a drafter and without. Rename the parameter in the "
            "model's code, or install the release of transformers that it was written for."
        )
    if prepares_elsewhere(model):
        raise ValueError(
            f"The inputs of {name} are prepared by prompt or prefix tuning (PEFT), which gives it one token at a "
            "time, so it cannot verify drafts; generate without a drafter, or use an adapter that changes weights, "
            "such as LoRA."
        )
    if "alora_offsets" in hook_arguments(model):
        raise ValueError(
            f"An activated LoRA (aLoRA) of {name} counts tokens from the end of each forward pass, so a block of "
            "drafts is not what single tokens are; generate without a drafter."
        )
    if generation_config.guidance_scale not in (None, 1) and varies_with_length(model):
        raise ValueError(
            f"guidance_scale={generation_config.guidance_scale} lets {name} read a second text in turns with the "
            "first, and its rotary frequencies depend on which it read before, so a block of drafts is not what "
            "single tokens are: leave it out, or generate without a drafter."
        )
    for option, unset, instead in _UNSUPPORTED:
        value = getattr(generation_config, option)
        if value not in unset:
            # A checkpoint may bring it along, and who has it need not know.
            is_stored = getattr(getattr(model, "generation_config", None), option, None) == value
            where = " It stands in model.generation_config." if is_stored else ""
            raise ValueError(
                f"{option}={value!r} is not supported together with a drafter: {instead}, or generate without a "
                f"drafter.{where}"
            )


def check_synced(model: PreTrainedModel, drafter: Any, generation_config: GenerationConfig) -> None:
    """Check that processes that share a sharded target can be kept in step.

    Args:
        model (`PreTrainedModel`): The target.
        drafter (`Any`): The drafter, or what drafts without a model.
        generation_config (`GenerationConfig`): That of the call.

    Raises:
        `ValueError`: If there is no process group, or passes are made that others would not make.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ValueError(
            "synced_gpus=True keeps processes in step, but there is no process group: call "
            "torch.distributed.init_process_group first, or leave synced_gpus out."
        )
    for name, is_set, why in (
        (type(model).__name__, replays(model), "processes some tokens again in passes of their own"),
        (type(drafter).__name__, getattr(drafter, "reads_tokens", False), "embeds tokens whenever it reads features"),
        (
            "prefill_chunk_size",
            generation_config.prefill_chunk_size is not None,
            "makes as many passes as a prompt has chunks",
        ),
    ):
        if is_set:
            raise ValueError(
                f"synced_gpus=True and a drafter are not supported together with {name}, which {why}, so that "
                "processes would get out of step. Leave one of them out."
            )


def check_cache(model: PreTrainedModel, model_kwargs: dict[str, Any], generation_config: GenerationConfig) -> None:
    """Check that rejected tokens can be taken out of the cache, and that the rest goes with it.

    Args:
        model (`PreTrainedModel`): The target.
        model_kwargs (`dict`): What `generate()` prepared, with the cache among it.
        generation_config (`GenerationConfig`): That of the call.

    Raises:
        `ValueError`: If not; the message says what to leave out.
    """
    cache = model_kwargs.get(CACHE_NAME)
    name = type(model).__name__
    if isinstance(cache, StaticCache):
        raise ValueError(
            f"A {type(cache).__name__} of {cache.get_max_length()} columns knows one length for all rows, and drafts "
            "let rows grow apart, so it is too small for that, whatever its size. Leave it out and pass "
            'cache_implementation="static": static rounds keep buffers of their own, as large as they need.'
        )
    if not is_rewindable(model, cache):
        got = "no cache" if cache is None else type(cache).__name__
        if isinstance(cache, DynamicCache):
            layers = sorted({type(layer).__name__ for layer in cache.layers})
            got = f"{'an offloaded' if cache.offloading else 'a'} {got} of {', '.join(layers)}"
        raise ValueError(
            "A drafter needs a cache that rejected tokens can be taken out of, such as a DynamicCache with attention "
            f"layers on the target's device, and {name} uses {got}. Leave out cache_implementation and "
            f"{CACHE_NAME}, or generate without a drafter."
        )
    if any(getattr(layer, "sliding_window", None) == 1 for layer in cache.layers):
        raise ValueError(
            f"{name} has a sliding window of 1, for which transformers' cache keeps all tokens, so that a token "
            "sees more of them than the window says, and in a block it does not. Set sliding_window to None or to "
            "2 and more, or generate without a drafter."
        )
    mask = model_kwargs.get("attention_mask")
    if compresses(cache) and mask is not None and not mask.all():
        raise ValueError(
            f"{name} compresses tokens by cache column, so with padding a block of drafts is not what single tokens "
            "are. Generate from prompts of one length, or one by one, or without a drafter."
        )
    records = generation_config.return_dict_in_generate and generation_config.output_attentions
    if records and (compresses(cache) or any(cache.is_linear)):
        raise ValueError(
            f"output_attentions is not supported together with a drafter for {name}, whose layers attend to more or "
            "less than one column for each token: leave it out, or generate without a drafter."
        )


def check_chunks(layout: PromptLayout, model_kwargs: dict[str, Any], generation_config: GenerationConfig) -> None:
    """Check that a prompt can be processed in chunks, if that is asked for.

    Args:
        layout ([`PromptLayout`]): Where the prompt stands.
        model_kwargs (`dict`): What `generate()` prepared.
        generation_config (`GenerationConfig`): That of the call, with `prefill_chunk_size`.

    Raises:
        `ValueError`: If the size is none, or images or the like would be split.
    """
    chunk_size = generation_config.prefill_chunk_size
    if chunk_size is None:
        return
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"prefill_chunk_size must be a positive int, got {chunk_size!r}.")
    others = [name for name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL if model_kwargs.get(name) is not None]
    if others and layout.num_columns - layout.num_cached > chunk_size:
        raise ValueError(
            f"prefill_chunk_size={chunk_size} would split the prompt, and with it {others}, which is not supported "
            "together with a drafter: leave prefill_chunk_size out, or generate without a drafter."
        )
