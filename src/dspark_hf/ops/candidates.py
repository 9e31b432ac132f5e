"""Draft distributions that are zero but for a few tokens.

Shapes: k candidates, V vocabulary; leading dimensions are those of rows and slots.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Candidates:
    """The tokens that a draft could have been, and the probability of each.

    An entry of probability 0 is padding: its id says nothing, and may be that of another entry. So probabilities are
    added up and never written into a vocabulary.

    Attributes:
        ids (`torch.LongTensor` of shape `(..., k)`): Tokens.
        probs (`torch.FloatTensor` of shape `(..., k)`): The float32 probabilities that the draft was drawn from. They
            are all 0 where nothing could be drafted.
    """

    ids: Tensor
    probs: Tensor

    @classmethod
    def certain(cls, token_ids: Tensor) -> "Candidates":
        """Drafts `token_ids` of shape `(...)` that could have been nothing else."""
        ids = token_ids.unsqueeze(-1)
        return cls(ids, torch.ones(ids.shape, device=ids.device))

    @classmethod
    def stack(cls, slots: list["Candidates"]) -> "Candidates":
        """Candidates of `slots`, `(batch, k)` each, side by side: `(batch, slots, k)`."""
        return cls(torch.stack([slot.ids for slot in slots], 1), torch.stack([slot.probs for slot in slots], 1))

    @property
    def max_probs(self) -> Tensor:
        """Largest probability of each distribution, `(...)`."""
        return self.probs.amax(-1)

    def __getitem__(self, index: Any) -> "Candidates":
        """The distributions at an index into the leading dimensions."""
        return Candidates(self.ids[index], self.probs[index])

    def to(self, device: torch.device) -> "Candidates":
        """The same on a `device`."""
        return Candidates(self.ids.to(device), self.probs.to(device))

    def prob_of(self, token_ids: Tensor) -> Tensor:
        """Probability of one token of each distribution, float32 `(...)`: of `token_ids` `(...)`."""
        return torch.where(self.ids == token_ids.unsqueeze(-1), self.probs, 0.0).sum(-1)

    def pad(self, num_slots: int, num_candidates: int) -> "Candidates":
        """Distributions `(batch, slots, k)` with padding behind: `(batch, num_slots, num_candidates)`."""
        shape = (*self.ids.shape[:-2], num_slots, num_candidates)
        padded = Candidates(self.ids.new_zeros(shape), self.probs.new_zeros(shape))
        inside = (..., slice(self.ids.shape[-2]), slice(self.ids.shape[-1]))
        padded.ids[inside], padded.probs[inside] = self.ids, self.probs
        return padded

    def where(self, mask: Tensor, other: "Candidates") -> "Candidates":
        """These where `mask` (it broadcasts) is True, and `other`, of the same shape, elsewhere."""
        return Candidates(torch.where(mask, self.ids, other.ids), torch.where(mask, self.probs, other.probs))

    def subtract_from_(self, weights: Tensor) -> Tensor:
        """Take the probabilities of the candidates off `weights` `(..., vocab)`, in place."""
        return weights.scatter_add_(-1, self.ids, -self.probs)
