"""The soft cap that some targets put on their logits."""

import torch
from torch import Tensor


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """`cap * tanh(logits / cap)`, elementwise; the logits themselves where `cap` is None."""
    return logits if cap is None else cap * torch.tanh(logits / cap)
