"""flash-attn's attention over a cache, in place of the kernel where it is at hand and the case fits.

`flash_attn_with_kvcache` takes as many queries of each row, and reads a row's columns up to a length of its own, at
whose end its mask and window stand, as ours do. It is that of flash-attn 2 where that is installed, else that of
kernels-community/flash-attn2 on the Hub where the package `kernels` is.
"""

import functools
import warnings
from collections.abc import Callable
from importlib import import_module, metadata
from typing import NamedTuple

import torch
from torch import Tensor

from dspark_hf.ops.blocks import LayerView

_REPOSITORY, _VERSION = "kernels-community/flash-attn2", 4


class Flash(NamedTuple):
    """The function for a device, None where none is to run, and whose it is or why there is none."""

    function: Callable[..., Tensor] | None
    why: str


def fits(query: Tensor, key: Tensor, value: Tensor, rows, view: LayerView) -> bool:
    """Whether the function can do what is asked; arguments as of [`row_attention`]."""
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and key.stride(-1) == value.stride(-1) == 1
        # Rows have at most so many queries: then each has.
        and query.shape[0] == rows.most * len(rows.starts)
        and rows.visible is None
        # A window of its own for each query of a block.
        and not (view.is_anchored and view.window is not None)
    )


def attend(
    function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, rows, view: LayerView, scaling: float,
    first: int,
) -> Tensor:  # fmt: skip
    """As of [`row_attention`], by flash-attn's `function`, where it [`fits`]."""
    queries = query.unflatten(0, (len(rows.starts), rows.most))
    lengths = rows.starts + rows.counts - first
    window = (-1, -1) if view.window is None else (view.window - 1, 0 if view.is_causal else -1)
    out = function(
        queries, key.transpose(1, 2), value.transpose(1, 2), cache_seqlens=lengths, softmax_scale=scaling,
        causal=view.is_causal, window_size=window,
    )  # fmt: skip
    return out.flatten(0, 1).contiguous()


@functools.cache
def flash_for(device: torch.device) -> Flash:
    """What is at hand for a `device`, tried on small cases; with a warning where it differs from the reference."""
    found = _find()
    if found.function is None:
        return found
    from .cases import EVEN, difference

    try:
        with torch.no_grad():
            differs = [difference(case, device, functools.partial(attend, found.function)) for case in EVEN]
        differs = next(filter(None, differs), None)
    except Exception as error:  # whatever a driver or a card has to say
        differs = f"{type(error).__name__}: {error}"
    if differs is None:
        return found
    why = f"{found.why} is off: its self-check failed: {' '.join(differs.split())}"
    warnings.warn(f"{why}; the row_attention kernel runs on {device} instead", RuntimeWarning, stacklevel=2)
    return Flash(None, why)


@functools.cache
def _find() -> Flash:
    try:
        return Flash(
            import_module("flash_attn").flash_attn_with_kvcache, f"flash-attn {metadata.version('flash-attn')}"
        )
    except Exception as error:  # built for another torch, or a release without it
        why = f"flash-attn: {type(error).__name__}: {error}"
    try:
        kernels = import_module("kernels")
    except ImportError:
        return Flash(None, f"{why}; kernels is not installed")
    try:
        return Flash(kernels.get_kernel(_REPOSITORY, version=_VERSION).flash_attn_with_kvcache, _REPOSITORY)
    except Exception as error:  # no network, or no build for this torch or card
        return Flash(None, f"{why}; {_REPOSITORY}: {type(error).__name__}: {error}")
