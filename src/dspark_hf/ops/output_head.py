"""What an output head makes of hidden states: a matrix, and what some targets do to its logits."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class OutputHead(NamedTuple):
    """An output head with what follows it.

    Attributes:
        weight (`torch.Tensor` of shape `(vocab, hidden)`): The matrix.
        scale (`float`): What logits are multiplied with (Granite, Cohere, Falcon-H1).
        softcap (`float`, *optional*): Soft cap on the scaled logits (Gemma).
        bias (`torch.Tensor` of shape `(vocab,)`, *optional*): Added before both (Phi, GPT-J, CodeGen).
    """

    weight: Tensor
    scale: float = 1.0
    softcap: float | None = None
    bias: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """`softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`, or as much of it as there is.

        Args:
            hidden (`torch.Tensor` of shape `(..., hidden)`): States behind the final norm.

        Returns:
            `torch.Tensor` of shape `(..., vocab)`.
        """
        return shape_logits(F.linear(hidden, self.weight, self.bias), self.scale, self.softcap)

    def to(self, device: torch.device, dtype: torch.dtype) -> "OutputHead":
        """The head with its tensors on a `device` and in a `dtype`."""
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return self._replace(weight=self.weight.to(device, dtype), bias=bias)


def shape_logits(logits: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """`softcap * tanh(scale * logits / softcap)`, elementwise, without the parts that change nothing.

    Args:
        logits (`torch.Tensor` of any shape): What the head's matrix gives.
        scale (`float`, *optional*, defaults to 1.0): What they are multiplied with.
        softcap (`float`, *optional*): The cap, if there is one.
    """
    logits = logits if scale == 1 else scale * logits
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
