"""Attention of one token a row without a copy of its keys for every head that shares them.

transformers' `sdpa` copies the keys and values of all tokens so far for each head, in each step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_BASE, _NAME = "sdpa", "dspark_grouped_sdpa"


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let steps of a target in this block share keys, where it is on a CPU and its attention is transformers' `sdpa`.

    Results differ from the target's own by rounding, so this is for writing text, and not for what is compared.

    Args:
        model (`PreTrainedModel`): The target.
    """
    config = model.config.get_text_config(decoder=True)
    may_swap = getattr(model, "_supports_attention_backend", False) and model.device.type == "cpu"
    if not may_swap or config._attn_implementation != _BASE:
        yield
        return
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = _BASE


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    batch_size, num_heads, num_tokens, _ = query.shape
    is_shared = key.shape[1] < num_heads and value.shape[1] == key.shape[1]
    # What depends on the head cannot be shared.
    is_plain = kwargs.get("position_bias") is None and (attention_mask is None or attention_mask.shape[1] == 1)
    if num_tokens > 1 or not is_shared or not is_plain:
        return ALL_ATTENTION_FUNCTIONS[_BASE](module, query, key, value, attention_mask, **kwargs)
    scaling = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    scores = (query * scaling).reshape(batch_size, key.shape[1], -1, query.shape[-1]) @ key.mT
    if attention_mask is not None:
        scores = scores + attention_mask
    out = scores.softmax(-1, torch.float32).to(value.dtype) @ value
    return out.reshape(batch_size, 1, num_heads, -1), None


AttentionInterface.register(_NAME, _attention)
# A mask that is added; where all tokens of a prompt are in the pass, torch's function takes that one, too.
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
