"""Where transformers' continuous batching learns about drafters: its public methods are wrapped.

`generate_batch`, `init_continuous_batching` and `continuous_batching_context_manager` take `assistant_model=`,
`speculation=` and, for stop strings, `tokenizer=`, and use an attached drafter. Calls without a drafter of this
library pass through untouched.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

_ORIGINAL = "__dspark_original__"
# What a call asks for, on its way to the method that makes the manager.
_asked: ContextVar[dict[str, Any]] = ContextVar("dspark_batching", default={})  # noqa: B039


def install() -> None:
    """Teach the methods about drafters. Doing it again changes nothing."""
    home = _home()
    if home is None:
        return
    for name, wrap in _WRAPPERS.items():
        original = getattr(home, name)
        if _ORIGINAL not in vars(original):
            wrapper = functools.wraps(original)(wrap(original))
            setattr(wrapper, _ORIGINAL, original)
            setattr(home, name, wrapper)


def remove() -> None:
    """Take the wrappers out again. Doing it again changes nothing."""
    home = _home()
    for name in _WRAPPERS if home is not None else ():
        method = getattr(home, name)
        if _ORIGINAL in vars(method):
            setattr(home, name, getattr(method, _ORIGINAL))


def _home() -> Any:
    from transformers import GenerationMixin

    # The mixin that has these methods; older releases may have others.
    return next((base for base in GenerationMixin.__mro__ if set(_WRAPPERS) <= set(vars(base))), None)


@contextmanager
def _asking(**given: Any) -> Iterator[None]:
    """Around the call of a method that leads to another wrapper."""
    asked = {name: value for name, value in given.items() if value is not None}
    token = _asked.set(asked or _asked.get())
    try:
        yield
    finally:
        _asked.reset(token)


def _wrap_generate_batch(original: Callable) -> Callable:
    def generate_batch(self, *args, assistant_model=None, speculation=None, tokenizer=None, **kwargs):
        with _asking(assistant_model=assistant_model, speculation=speculation, tokenizer=tokenizer):
            return original(self, *args, **kwargs)

    return generate_batch


def _wrap_context_manager(original: Callable) -> Callable:
    @contextmanager
    def continuous_batching_context_manager(
        self, *args, assistant_model=None, speculation=None, tokenizer=None, **kwargs
    ):
        with ExitStack() as stack:
            with _asking(assistant_model=assistant_model, speculation=speculation, tokenizer=tokenizer):
                manager = stack.enter_context(original(self, *args, **kwargs))
            yield manager

    return continuous_batching_context_manager


def _wrap_init(original: Callable) -> Callable:
    signature = inspect.signature(original)

    def init_continuous_batching(self, *args, assistant_model=None, speculation=None, tokenizer=None, **kwargs):
        from dspark_hf.generation.attach import attached_drafter

        asked = {"assistant_model": assistant_model, "speculation": speculation, "tokenizer": tokenizer}
        asked = {name: value for name, value in asked.items() if value is not None} or _asked.get()
        drafter, speculation = asked.get("assistant_model"), asked.get("speculation")
        if speculation is False:
            if drafter is not None:
                raise ValueError("speculation=False and assistant_model=drafter contradict each other: leave one out.")
        elif drafter is None:
            drafter = attached_drafter(self)
        if drafter is None:
            if speculation:
                raise ValueError("speculation= was given without a drafter: pass assistant_model=drafter, too.")
            if asked.get("tokenizer") is not None:
                raise ValueError(
                    "tokenizer= is for stop strings, which continuous batching has with a drafter only: pass "
                    "assistant_model=drafter, too, or leave it out."
                )
            return original(self, *args, **kwargs)
        from .entry import make_manager

        given = signature.bind(self, *args, **kwargs).arguments
        return make_manager(
            self,
            functools.partial(original, self),
            drafter,
            speculation,
            given.get("generation_config"),
            given.get("continuous_batching_config"),
            given.get("workload_hints"),
            asked.get("tokenizer"),
        )

    return init_continuous_batching


_WRAPPERS = {
    "generate_batch": _wrap_generate_batch,
    "continuous_batching_context_manager": _wrap_context_manager,
    "init_continuous_batching": _wrap_init,
}
