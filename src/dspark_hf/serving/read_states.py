"""Projected states that the drafter has not taken into its context yet.

Shapes: E hidden size.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

# States beyond twice those that were waited for at the latest look, from which on there is another.
_MOST_MORE = 1024


class ReadStates:
    """States of tokens, one behind the other, of which pieces `(place of the first, count)` belong to requests."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Tensor, Tensor]] = []
        self._length, self._look_at = 0, _MOST_MORE

    def add(self, states: Tensor, ids: Tensor) -> int:
        """Add states.

        Args:
            states (`torch.Tensor` of shape `(tokens, hidden)`): They.
            ids (`torch.LongTensor` of shape `(tokens,)`): Their tokens.

        Returns:
            `int`: Place of the first.
        """
        self._chunks.append((states, ids))
        first, self._length = self._length, self._length + len(ids)
        return first

    def take(self, places: list[list[int]]) -> tuple[Tensor, Tensor]:
        """States and tokens at some places.

        Args:
            places (`list[list[int]]`): Rows of the same length.

        Returns:
            `tuple(torch.Tensor, torch.LongTensor)` of shape `(rows, places, hidden)` and `(rows, places)`.
        """
        if len(self._chunks) > 1:
            self._chunks = [tuple(torch.cat(parts) for parts in zip(*self._chunks, strict=True))]
        states, ids = self._chunks[0]
        index = torch.tensor(places, device=states.device)
        return states[index], ids[index]

    def compact(self, pieces: Iterable[list[tuple[int, int]]], always: bool = False) -> None:
        """Drop states that belong to nobody, and let those of a request follow each other, now and then.

        Args:
            pieces (`Iterable[list]`): Pieces of each request, changed in place to where they are then.
            always (`bool`, *optional*, defaults to `False`): Whether to do it now.
        """
        if self._length == 0 or not (always or self._length > self._look_at):
            return
        places: list[int] = []
        for one in filter(None, pieces):
            begin = len(places)
            for first, count in one:
                places += range(first, first + count)
            one[:] = [(begin, len(places) - begin)]
        chunk = [rows[0] for rows in self.take([places])] if places else None
        self._chunks, self._length = ([] if chunk is None else [tuple(chunk)]), len(places)
        self._look_at = 2 * len(places) + _MOST_MORE
