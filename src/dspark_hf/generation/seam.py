"""The one place where transformers' `generate()` learns about drafters.

Methods of `GenerationMixin` are wrapped, and the function that loads a pipeline's assistant. A call without a drafter
of this library passes through untouched. Where drafters and targets are loaded otherwise than they can be, errors say
how to load them ([`misuse`]). Drafters are recognised by their attribute `is_drafter`, so classes loaded as
remote code count too. Wrappers import what they need when they are called: the first module of this library that is
imported may be the one to install them.
"""

import functools
import inspect
import os
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from .misuse import wrap_adjust, wrap_report, wrap_template

# The oldest and the newest release of transformers that the tests run with.
TESTED = ("5.23", "5.24")

_ORIGINAL = "__dspark_original__"
# What AutoDrafter takes for the drafter that comes with the library.
_EMBEDDED = "embedded"
_speculation: ContextVar[Any] = ContextVar("dspark_speculation", default=None)
# What the wrappers rely on; a version of transformers without it must not be patched.
_NEEDED = {
    "generate": {"assistant_model", "custom_generate", "kwargs"},
    "_validate_generation_mode": {"generation_mode", "generation_config", "generation_mode_kwargs"},
    "_assisted_decoding": {"logits_processor", "stopping_criteria", "generation_config", "assistant_model"},
    "adjust_generation_fn": {"pretrained_model_name_or_path"},
    "load_assistant_model": {"model", "assistant_model", "assistant_tokenizer"},
    "log_state_dict_report": {"model", "pretrained_model_name_or_path"},
    "get_chat_template": {"chat_template", "tools"},
}


def install() -> None:
    """Teach `generate()` to speculate. Doing it again changes nothing.

    A release of transformers that is newer than those tested gets a warning, as long as it has what is wrapped.

    Raises:
        `RuntimeError`: If this version of transformers has another `generate()` than the wrappers expect.
    """
    if is_installed():
        return
    for name, needed in _NEEDED.items():
        home = _home(name)
        if missing := needed - set(inspect.signature(getattr(home, name)).parameters):
            raise RuntimeError(
                f"This version of transformers is not supported: {home.__name__}.{name} has no {sorted(missing)}. "
                f"Install one that dspark_hf is tested with: pip install 'transformers=={TESTED[-1]}.*'."
            )
    _warn_if_untested()
    for name, wrap in (
        ("generate", _wrap_generate),
        ("_validate_generation_mode", _wrap_validate),
        ("_assisted_decoding", _wrap_assisted),
        ("adjust_generation_fn", wrap_adjust),
        ("load_assistant_model", _wrap_load_assistant),
        ("log_state_dict_report", wrap_report),
        ("get_chat_template", wrap_template),
    ):
        original = getattr(_home(name), name)
        wrapper = functools.wraps(original)(wrap(original))
        setattr(wrapper, _ORIGINAL, original)
        setattr(_home(name), name, wrapper)


def remove() -> None:
    """Take the wrappers out again. Doing it again changes nothing.

    Raises:
        `RuntimeError`: If another library has wrapped a method since, and would be taken out with them.
    """
    if not is_installed():
        return
    methods = {name: getattr(_home(name), name) for name in _NEEDED}
    if covered := [name for name, method in methods.items() if _ORIGINAL not in vars(method)]:
        raise RuntimeError(
            f"{_home(covered[0]).__name__}.{covered[0]} was wrapped again after dspark_hf did it; remove that wrapper "
            "first."
        )
    for name, method in methods.items():
        setattr(_home(name), name, getattr(method, _ORIGINAL))


def is_installed() -> bool:
    """Whether `generate()` knows of drafters."""
    return any(_is_wrapped(getattr(_home(name), name)) for name in _NEEDED)


def _home(name: str) -> Any:
    """Whose attribute is wrapped."""
    if name == "load_assistant_model":
        from transformers.pipelines import base

        return base
    if name == "log_state_dict_report":
        from transformers import modeling_utils

        return modeling_utils
    if name == "get_chat_template":
        from transformers import PreTrainedTokenizerBase

        return PreTrainedTokenizerBase
    from transformers import GenerationMixin

    return GenerationMixin


@functools.cache
def _warn_if_untested() -> None:
    """Say once that transformers is newer than this library's tests."""
    import transformers
    from packaging.version import Version

    oldest, newest = TESTED
    # Patches of a release, and what comes before it, count as the release itself.
    if Version(transformers.__version__).release[:2] > Version(newest).release:
        warnings.warn(
            f"dspark_hf is tested with transformers {oldest} to {newest}, and this is {transformers.__version__}. "
            "Should generate() with a drafter fail, or differ from generate() without one, upgrade dspark_hf or "
            f"install a release that is tested: pip install 'transformers=={newest}.*'.",
            stacklevel=2,
        )


def _is_wrapped(method: Any) -> bool:
    while method is not None:
        if _ORIGINAL in vars(method):
            return True
        method = getattr(method, "__wrapped__", None)
    return False


def _is_drafter(model: Any) -> bool:
    return getattr(model, "is_drafter", False) is True


def _wrap_generate(original: Callable) -> Callable:
    # Arguments may be positional, so their places matter.
    names = list(inspect.signature(original).parameters)

    def generate(self, *args, **kwargs):
        from .attach import attached_drafter

        kwargs = _with_new_names(kwargs)
        speculation = kwargs.pop("speculation", None)
        given = dict(zip(names[1:], args, strict=False)) | kwargs
        if isinstance(given.get("assistant_model"), str | os.PathLike):
            raise ValueError(
                f"assistant_model={os.fspath(given['assistant_model'])!r} is a name: pass a model in memory, such as "
                "AutoDrafter.from_pretrained(name) for a drafter, or AutoModelForCausalLM's for another model."
            )
        has_own_loop = given.get("custom_generate") is not None
        if given.get("assistant_model") is None and speculation is not False and not has_own_loop:
            attached = attached_drafter(self)
            if attached is not None:
                given["assistant_model"] = _made_ready(self, attached)
            elif lookup := getattr(speculation, "prompt_lookup", None):
                given["assistant_model"] = lookup
        if not _is_drafter(given.get("assistant_model")):
            if speculation is None or speculation is False:
                return original(self, *args, **kwargs)
            if has_own_loop:
                return original(self, *args, speculation=speculation, **kwargs)
            raise ValueError(
                "speculation= was given without a drafter: pass assistant_model=drafter, attach one with "
                "attach_drafter(model, drafter), or go without one: SpeculationConfig(prompt_lookup=True)."
            )
        if speculation is False:
            raise ValueError("speculation=False and assistant_model=drafter contradict each other: leave one out.")
        if given.get("cache_implementation") == "paged":
            raise ValueError(
                "cache_implementation='paged' asks for continuous batching, which takes drafters in generate_batch(): "
                "call that, leave it out, or generate without a drafter."
            )
        token = _speculation.set(speculation)
        try:
            return original(self, **given)
        finally:
            _speculation.reset(token)

    return generate


def _with_new_names(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate()` as this release names them; transformers would warn of the wrapper's line."""
    from dspark_hf.modeling.cache_name import CACHE_NAME

    old = "past_key_values"
    if CACHE_NAME == old or old not in kwargs:
        return kwargs
    warnings.warn(
        f"`{old}` is deprecated: since transformers 5.24, generate() takes the cache as `{CACHE_NAME}`.",
        FutureWarning,
        stacklevel=3,
    )
    return {CACHE_NAME: kwargs[old]} | {name: value for name, value in kwargs.items() if name != old}


def _made_ready(target: Any, drafter: Any) -> Any:
    from dspark_hf.modeling.placement import compute_device

    if not drafter.is_bound_to(target):
        # As after a copy of both. Whether they belong together was asked when it was attached.
        drafter.bind(target, check_name=False)
    # An attached drafter is no submodule, so target.to(device) leaves it behind.
    device = compute_device(target.get_input_embeddings())
    return drafter if drafter.device == device else drafter.to(device)


def _wrap_validate(original: Callable) -> Callable:
    def validate(self, generation_mode, generation_config, generation_mode_kwargs):
        from .checks import check_drafter, check_mode, check_options
        from .config import SpeculationConfig
        from .static.possible import STATIC_CACHES
        from .target.rotary import varies_with_length

        drafter = generation_mode_kwargs.get("assistant_model")
        if not _is_drafter(drafter):
            return original(self, generation_mode, generation_config, generation_mode_kwargs)
        check_drafter(drafter, _speculation.get() or SpeculationConfig())
        check_mode(generation_mode, generation_config)
        # This config is the call's own, and the cache is prepared after this. Plain decoding without a cache gives the
        # same tokens, unless it gives the whole text other frequencies at each step.
        if not varies_with_length(self):
            generation_config.use_cache = True
        check_options(self, generation_config)
        if generation_config.cache_implementation in STATIC_CACHES:
            # The prompt fills a cache that grows. transformers' own has one length for all rows, and not every kind of
            # layer, which is told with all else that stands in the way.
            generation_config.static_rounds = generation_config.cache_implementation
            generation_config.cache_implementation = None
        if "assistant_tokenizer" in generation_mode_kwargs:
            raise ValueError(
                "assistant_tokenizer is not supported together with a drafter, which shares the target's vocabulary: "
                "leave it out."
            )

    return validate


def _wrap_assisted(original: Callable) -> Callable:
    names = list(inspect.signature(original).parameters)
    # Not for the target's forward pass: transformers' own assistants need them.
    unused = ("assistant_model", "inputs_tensor", "tokenizer", "assistant_tokenizer")

    def assisted_decoding(self, *args, **kwargs):
        from .entry import speculative_generate

        given = dict(zip(names[1:], args, strict=False)) | kwargs
        drafter = given.get("assistant_model")
        if not _is_drafter(drafter):
            return original(self, *args, **kwargs)
        given = {name: value for name, value in given.items() if name not in unused}
        return speculative_generate(self, drafter=drafter, speculation=_speculation.get(), **given)

    return assisted_decoding


def _wrap_load_assistant(original: Callable) -> Callable:
    def load_assistant_model(model, assistant_model, assistant_tokenizer):
        drafter = assistant_model
        if isinstance(drafter, str | os.PathLike) and model.can_generate() and _names_drafter(drafter):
            import dspark_hf

            drafter = dspark_hf.AutoDrafter.from_pretrained(drafter, dtype=model.dtype).to(model.device)
        # A drafter shares its target's vocabulary, whichever special tokens its config names.
        return (drafter, None) if _is_drafter(drafter) else original(model, assistant_model, assistant_tokenizer)

    return load_assistant_model


def _names_drafter(name: str | os.PathLike) -> bool:
    """Whether a folder or a repository holds a drafter. What cannot be read is left to others to tell."""
    from transformers import PreTrainedConfig

    from dspark_hf.modeling.configuration.recognition import is_of_drafter

    if os.fspath(name) == _EMBEDDED:
        return True
    try:
        return is_of_drafter(PreTrainedConfig.get_config_dict(name)[0])
    except (OSError, ValueError):
        return False
