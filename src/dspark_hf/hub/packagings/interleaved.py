"""Rope that turns neighbouring pairs of a head's entries, as LiquidAI's LFM2 drafters have it, made the usual one.

The usual rope turns entry i with entry i + D/2, and interleaved rope entry 2i with 2i + 1, by the same angle. A
product of query and key does not see the order of entries, so weights whose rows are sorted, the even entries first,
compute the same with the usual rope. Shapes: D head dim.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dspark_hf.modeling import DraftModel

FLAGS = ("rope_is_neox_style", "is_neox_style")


def is_interleaved(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` asks for interleaved rope."""
    return any(config.get(name) is False for name in FLAGS)


def without_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config` that does not tell of the order of rope's pairs."""
    return {name: value for name, value in config.items() if name not in FLAGS}


@torch.no_grad()
def sort_pairs(drafter: DraftModel) -> None:
    """Sort the entries of every head's queries and keys of a `drafter`, in place."""
    for layer in drafter.layers:
        attention = layer.self_attn
        for name in ("q_proj", "k_proj"):
            for parameter in getattr(attention, name).parameters():
                heads = parameter.view(-1, attention.head_dim, *parameter.shape[1:])
                parameter.copy_(_sorted(heads, 1).flatten(0, 1))
        for name in ("q_norm", "k_norm"):
            if hasattr(attention, name):
                weight = getattr(attention, name).weight
                weight.copy_(_sorted(weight, 0))


def _sorted(entries: Tensor, dim: int) -> Tensor:
    order = torch.arange(entries.shape[dim], device=entries.device)
    return entries.index_select(dim, torch.cat([order[::2], order[1::2]]))
