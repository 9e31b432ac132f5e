"""Attention of drafted blocks over their rows' contexts, without a mask, where there is a kernel for it.

The function is registered in transformers' attention interface under a name that a drafter's config carries only while
a block is drafted. A pass of another thread that meets it gets torch's attention, with the mask that it has.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dspark_hf.ops.blocks import LayerView
from dspark_hf.ops.dispatch import kernel_for
from dspark_hf.ops.row_attention import Rows, even_rows, has_kernel, row_attention

from .context import DraftState, FixedState

_NAME, _BASE = "dspark_block", "sdpa"


class _Block(NamedTuple):
    rows: Rows
    views: Sequence[LayerView]


_block: ContextVar[_Block | None] = ContextVar("dspark_block", default=None)


def block_attention(
    config: PreTrainedConfig,
    state: DraftState | FixedState,
    num_tokens: int,
    views: Sequence[LayerView],
    device: torch.device,
) -> AbstractContextManager:
    """Let the draft layers attend through the kernel, if it runs on the device; otherwise nothing changes.

    Args:
        config (`PreTrainedConfig`): The decoder's.
        state ([`DraftState`]): The context, which the block stands behind. Compiled code has attention of its own.
        num_tokens (`int`): Tokens of a block.
        views (`Sequence[LayerView]`): What each layer's tokens see.
        device (`torch.device`): Where the drafter is.
    """
    if config._attn_implementation not in (_NAME, _BASE):
        return nullcontext()
    if kernel_for("row_attention", device) is None:
        return nullcontext()
    return _in_use(config, _Block(even_rows(state.starts(device), num_tokens), views))


@contextmanager
def _in_use(config: PreTrainedConfig, block: _Block) -> Iterator[None]:
    token = _block.set(block)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = _BASE
        _block.reset(token)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple:
    # Compiled code has attention of its own, and cannot ask a ContextVar.
    block = None if torch.compiler.is_compiling() else _block.get()
    if block is None or kwargs.get("dropout") or not has_kernel(query, key, value):
        return ALL_ATTENTION_FUNCTIONS[_BASE](module, query, key, value, attention_mask, **kwargs)
    batch_size, num_heads, num_tokens, head_dim = query.shape
    queries = query.transpose(1, 2).reshape(-1, num_heads, head_dim)
    scaling = kwargs.get("scaling")
    scaling = head_dim**-0.5 if scaling is None else scaling
    out = row_attention(queries, key, value, block.rows, block.views[module.layer_idx], scaling=scaling)
    return out.view(batch_size, num_tokens, num_heads, head_dim), None


AttentionInterface.register(_NAME, _attention)
