"""What the drafter reads of the tokens in a paged cache, block by block, for requests that share blocks.

Shapes: P tokens of a block, E hidden size.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


class BlockStates:
    """Projected states of the tokens in the blocks of a cache; each stays as long as its block keeps what is in it.

    All memory that this ever takes is taken with the first states: a vector for each token of the cache.

    Args:
        blocks_of (`Callable`): From a request to its blocks, in the order of its text.
        block_size (`int`): Tokens of a block, P.
        num_blocks (`int`): Blocks of the cache; they are numbers below it.
    """

    def __init__(self, blocks_of: Callable[[str], Sequence[int]], block_size: int, num_blocks: int):
        self._blocks_of, self._size, self._num_blocks = blocks_of, block_size, num_blocks
        # Tokens of each block, from its first one on, whose states are here.
        self._filled: dict[int, int] = {}
        self._states: Tensor | None = None  # [blocks * P, E]

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return 0 if self._states is None else self._states.numel() * self._states.element_size()

    def place(self, request_id: str, start: int, count: int) -> list[int]:
        """Where states of a request's tokens are to be written, which the caller does before anyone reads them.

        Args:
            request_id (`str`): The request.
            start (`int`): Position of the first token.
            count (`int`): Tokens.
        """
        blocks, size, end, places = self._blocks_of(request_id), self._size, start + count, []
        for number in range(start // size, -(-end // size)):
            block, first = blocks[number], max(start - number * size, 0)
            last = min(end - number * size, size)
            places += range(block * size + first, block * size + last)
            # What does not follow what is here leaves a gap.
            if first <= self._filled.get(block, 0):
                self._filled[block] = last
        return places

    def find(self, request_id: str, end: int) -> list[int]:
        """Places of the tokens of a request before a position, as many as are here without a gap.

        Args:
            request_id (`str`): The request.
            end (`int`): The position.
        """
        pieces: list[range] = []
        for number in range(-(-end // self._size) - 1, -1, -1):
            block, last = self._blocks_of(request_id)[number], min(end - number * self._size, self._size)
            if self._filled.get(block, 0) < last:
                break
            pieces.append(range(block * self._size, block * self._size + last))
        return [place for piece in reversed(pieces) for place in piece]

    def write(self, places: Sequence[int], states: Tensor) -> None:
        """Write states.

        Args:
            places (`Sequence[int]`): Of [`BlockStates.place`], each once.
            states (`torch.Tensor` of shape `(places, hidden)`): They.
        """
        if self._states is None:
            self._states = states.new_empty(self._num_blocks * self._size, states.shape[-1])
        self._states.index_copy_(0, torch.tensor(places, device=states.device), states)

    def read(self, places: Sequence[int]) -> Tensor:
        """States `(places, hidden)` that were written."""
        return self._states[torch.tensor(places, device=self._states.device)]

    def copy(self, source_id: str, request_id: str) -> None:
        """Let a request whose blocks are copies of another's have copies of the states, too.

        Args:
            source_id (`str`): The other.
            request_id (`str`): The one.
        """
        for source, block in zip(self._blocks_of(source_id), self._blocks_of(request_id), strict=False):
            if source != block:
                self._filled[block] = num_filled = self._filled.get(source, 0)
                if num_filled > 0:
                    to, of = block * self._size, source * self._size
                    self._states[to : to + num_filled] = self._states[of : of + num_filled]

    def forget(self, blocks: Iterable[int]) -> None:
        """Take the states of some blocks for lost.

        Args:
            blocks (`Iterable[int]`): They.
        """
        for block in blocks:
            self._filled.pop(block, None)

    def forget_request(self, request_id: str) -> None:
        """Take the states of a request for lost, as where its blocks were filled from elsewhere.

        Args:
            request_id (`str`): The request.
        """
        self.forget(self._blocks_of(request_id))

    def forget_places(self, places: Iterable[int]) -> None:
        """Take what was placed for never written.

        Args:
            places (`Iterable[int]`): Of [`BlockStates.place`].
        """
        self.forget({place // self._size for place in places})
