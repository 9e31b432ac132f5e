"""The confidence head (paper, section 3.3)."""

import torch
from torch import Tensor, nn


class ConfidenceHead(nn.Module):
    """Logit of P(slot accepted | all earlier slots accepted), from `[h_k; W1[x_{k-1}]]` or from `h_k` alone.

    Args:
        num_inputs (`int`): Width of what it reads.
        bias (`bool`, *optional*, defaults to `True`): Whether it has a bias.
    """

    def __init__(self, num_inputs: int, bias: bool = True):
        super().__init__()
        self.proj = nn.Linear(num_inputs, 1, bias=bias)

    def forward(self, hidden: Tensor, prev_embeds: Tensor | None) -> Tensor:
        """
        Args:
            hidden (`torch.Tensor` of shape `(..., hidden)`): Block hidden states.
            prev_embeds (`torch.Tensor` of shape `(..., rank)`, *optional*): `W1[x_{k-1}]`, if the head reads it.

        Returns:
            `torch.Tensor` of shape `(...)`: confidence logits.
        """
        inputs = hidden if prev_embeds is None else torch.cat([hidden, prev_embeds], -1)
        return self.proj(inputs).squeeze(-1)
