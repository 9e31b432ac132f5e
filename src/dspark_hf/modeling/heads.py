"""The sequential head and the confidence head (paper, sections 3.2 and 3.3).

Shapes: N rows (any leading dimensions flattened), E hidden size, V vocabulary, r Markov rank.
"""

import torch
from torch import Tensor, nn


class MarkovHead(nn.Module):
    """Low-rank bias on a slot's logits, given the token before it: `bias = W2 m(x_{k-1}, h_k)`.

    `step` returns the rank-r vector `m`; the bias over the vocabulary is `markov_w2(m)`. Kept apart, a training step
    can fold both products into one pass over the vocabulary.

    Args:
        vocab_size (`int`): V.
        hidden_size (`int`): E.
        rank (`int`): r.
        num_outputs (`int`): Tokens the drafter can propose; V unless its vocabulary is reduced.
    """

    def __init__(self, vocab_size: int, hidden_size: int, rank: int, num_outputs: int):
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
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

    def step(self, prev_ids: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One slot.

        Args:
            prev_ids (`torch.LongTensor` of shape `(rows,)`): The token before the slot; the anchor for slot 1.
            hidden (`torch.Tensor` of shape `(rows, hidden)`): The slot's block hidden state.
            state (`torch.Tensor` of shape `(rows, rank)`, *optional*): What the previous slot returned.

        Returns:
            `tuple`: the vector `m` of shape `(rows, rank)`, and the state for the next slot.
        """
        return self.markov_w1(prev_ids), None


class GatedMarkovHead(MarkovHead):
    """`m = sigmoid(Wg [h_k; W1[x_{k-1}]] + b) * W1[x_{k-1}]`."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int, num_outputs: int):
        super().__init__(vocab_size, hidden_size, rank, num_outputs)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def step(self, prev_ids: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        embedded = self.markov_w1(prev_ids)
        return torch.sigmoid(self.gate_proj(torch.cat([hidden, embedded], -1))) * embedded, None


class RnnMarkovHead(MarkovHead):
    """A gated recurrence over the block: `s_k = g s_{k-1} + (1 - g) tanh(c)`, `m = tanh(o)`, with `g` a sigmoid."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int, num_outputs: int):
        super().__init__(vocab_size, hidden_size, rank, num_outputs)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def step(self, prev_ids: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        embedded = self.markov_w1(prev_ids)
        state = torch.zeros_like(embedded) if state is None else state
        gate, candidate, output = self.joint_proj(torch.cat([state, embedded, hidden], -1)).chunk(3, -1)
        gate = torch.sigmoid(gate)
        return torch.tanh(output), gate * state + (1 - gate) * torch.tanh(candidate)


MARKOV_HEADS: dict[str, type[MarkovHead]] = {"vanilla": MarkovHead, "gated": GatedMarkovHead, "rnn": RnnMarkovHead}


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
