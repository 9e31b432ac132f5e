"""Sequential heads: a low-rank bias on a slot's logits, given the tokens before it (paper, section 3.2).

Shapes: E hidden size, V vocabulary, r rank.
"""

import torch
from torch import Tensor, nn


class SequentialHead(nn.Module):
    """A bias of low rank on a slot's logits: `bias = W2 m`, where `m` comes from what was drafted before.

    `step` returns the vector `m`; the bias over the vocabulary is `markov_w2(m)`. Kept apart, a training step can
    fold both products into one pass over the vocabulary.

    Args:
        rank (`int`): r.
        num_outputs (`int`): Tokens the drafter can propose; V unless its vocabulary is reduced.
    """

    def __init__(self, rank: int, num_outputs: int):
        super().__init__()
        self.markov_w2 = nn.Linear(rank, num_outputs, bias=False)

    def bias(self, vector: Tensor, entries: Tensor | None = None) -> Tensor:
        """Bias on the logits of some entries.

        Args:
            vector (`torch.Tensor` of shape `(rows, rank)`): The vector `m` that `step` returned.
            entries (`torch.LongTensor` of shape `(rows, k)`, *optional*): Entries of the vocabulary; all if None.

        Returns:
            `torch.Tensor` of shape `(rows, k)`.
        """
        if entries is None:
            return self.markov_w2(vector)
        if type(self.markov_w2) is not nn.Linear:
            # What an adapter or a quantiser has put in its place computes more than its weight says.
            return self.markov_w2(vector).gather(1, entries)
        # k rows of W2 in place of all.
        return torch.bmm(self.markov_w2.weight[entries], vector.unsqueeze(-1)).squeeze(-1)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One slot.

        Args:
            previous (`torch.Tensor` of shape `(..., width)`): The token before the slot, the anchor for slot 1, as
                [`MarkovHead`] embeds it, or for a head without a `markov_w1` as the target does.
            hidden (`torch.Tensor` of shape `(..., hidden)`): The slot's block hidden state.
            state (`torch.Tensor` of shape `(..., state)`, *optional*): What the previous slot returned.

        Returns:
            `tuple`: the vector `m` of shape `(..., rank)`, and the state for the next slot.
        """
        raise NotImplementedError


class MarkovHead(SequentialHead):
    """`m = W1[x_{k-1}]`: the bias depends on the token before the slot alone.

    Args:
        vocab_size (`int`): V.
        hidden_size (`int`): E.
        rank (`int`): r.
        num_outputs (`int`): Tokens the drafter can propose.
    """

    def __init__(self, vocab_size: int, hidden_size: int, rank: int, num_outputs: int):
        super().__init__(rank, num_outputs)
        self.markov_w1 = nn.Embedding(vocab_size, rank)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return previous, None


class GatedMarkovHead(MarkovHead):
    """`m = sigmoid(Wg [h_k; W1[x_{k-1}]] + b) * W1[x_{k-1}]`."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int, num_outputs: int):
        super().__init__(vocab_size, hidden_size, rank, num_outputs)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return torch.sigmoid(self.gate_proj(torch.cat([hidden, previous], -1))) * previous, None


class RnnMarkovHead(MarkovHead):
    """A gated recurrence over the block: `s_k = g s_{k-1} + (1 - g) tanh(c)`, `m = tanh(o)`, with `g` a sigmoid."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int, num_outputs: int):
        super().__init__(vocab_size, hidden_size, rank, num_outputs)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        state = torch.zeros_like(previous) if state is None else state
        gate, candidate, output = self.joint_proj(torch.cat([state, previous, hidden], -1)).chunk(3, -1)
        gate = torch.sigmoid(gate)
        return torch.tanh(output), gate * state + (1 - gate) * torch.tanh(candidate)
