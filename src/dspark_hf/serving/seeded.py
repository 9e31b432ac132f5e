"""Draws of requests with a seed: a token follows from the seed, its position and its distribution.

Neither the other requests of a batch nor what was drafted have a part in it, so an answer repeats whoever else is
served. Drafts are drawn by the same numbers, so that they agree with the target's tokens about as often as others do.

Shapes: B rows, k candidates, V vocabulary.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Place = tuple[int, int]
"""A seed, and a position in a text."""


class SeededDraws:
    """Draws tokens by places. Of a step's numbers, those that draft and verify are the same, and made once.

    Args:
        vocab_size (`int`): Tokens, V.
    """

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size
        self._made: dict[tuple[Place, torch.device], Tensor] = {}

    def forget(self) -> None:
        """Let go of the numbers of a step that is over."""
        self._made.clear()

    def draw(self, probs: Tensor, places: Sequence[Place], token_ids: Tensor | None = None) -> Tensor:
        """Draw a token of each row.

        Args:
            probs (`torch.FloatTensor` of shape `(batch, k)`): Its distribution.
            places (`Sequence[tuple[int, int]]`): Where it stands.
            token_ids (`torch.LongTensor` of shape `(batch, k)`, *optional*): Which tokens; all, if not given.

        Returns:
            `torch.LongTensor` of shape `(batch,)`: Places among the k.
        """
        # The first of some clocks to ring, each at the rate of its token, is one drawn by these rates.
        clocks = torch.stack([self._clocks(place, probs.device) for place in places])  # [B, V]
        clocks = clocks[:, : probs.shape[-1]] if token_ids is None else clocks.gather(1, token_ids.to(clocks.device))
        return (probs / clocks).argmax(-1)

    def _clocks(self, place: Place, device: torch.device) -> Tensor:
        key = place, device
        if key not in self._made:
            text = f"{place[0]} {place[1]}".encode()
            number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") % 2**63
            generator = torch.Generator(device).manual_seed(number)
            self._made[key] = torch.empty(self._vocab_size, device=device).exponential_(generator=generator)
        return self._made[key]
