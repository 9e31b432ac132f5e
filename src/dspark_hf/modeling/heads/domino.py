"""Domino's head (https://arxiv.org/abs/2605.29707): a recurrence over the block's tokens in the target's embedding.

As SpecForge 0.2 and SGLang 0.5.23 compute it. Shapes: E hidden size, H size of the recurrence, r rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .markov import SequentialHead


class DominoHead(SequentialHead):
    """`s_k = GRU(E[x_{k-1}], s_{k-1})`, `m = silu(W [h_k; s_k])`: the bias depends on all tokens of the block before.

    Args:
        hidden_size (`int`): E.
        rank (`int`): r.
        num_outputs (`int`): Tokens the drafter can propose.
        gru_hidden_dim (`int`): H.
        num_pure (`int`): Slots at the block's start that get no bias: 0 or 1.
    """

    def __init__(self, hidden_size: int, rank: int, num_outputs: int, *, gru_hidden_dim: int, num_pure: int):
        super().__init__(rank, num_outputs)
        self.prefix_gru = nn.GRUCell(hidden_size, gru_hidden_dim, bias=False)
        self.embed_proj = nn.Linear(hidden_size + gru_hidden_dim, rank, bias=False)
        self.num_pure = num_pure

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        is_first, shape = state is None, previous.shape[:-1]
        rows = previous.reshape(-1, previous.shape[-1])
        state = self.prefix_gru(rows, None if is_first else state.reshape(rows.shape[0], -1)).view(*shape, -1)
        vector = F.silu(self.embed_proj(torch.cat([hidden, state.to(hidden.dtype)], -1)))
        return torch.zeros_like(vector) if is_first and self.num_pure else vector, state
