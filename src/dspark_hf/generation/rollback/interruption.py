"""A cache of the caller's after something raised in the middle of a round: Ctrl-C, a streamer, a criterion."""

import warnings

from transformers import Cache

from .compaction import compact, cut_back
from .rewinding import Rewinder


class Interruption:
    """Follows a cache from pass to pass, so that it can be left with nothing but tokens that stand.

    Args:
        cache (`Cache`): The cache.
        rewinder ([`Rewinder`]): Takes tokens out of it.
        num_cached (`int`): Columns that it holds already.
    """

    def __init__(self, cache: Cache, rewinder: Rewinder, num_cached: int):
        self._cache, self._rewinder = cache, rewinder
        self._num_cached = num_cached
        self._prompt_end: int | None = None
        # Columns of each row that stand, and those of a block that wait for the verdict.
        self._ends: list[int] = []
        self._num_open = 0
        self.is_in_pass = False
        # Whether that pass has emptied the cache first, to fill it anew.
        self.is_anew = False

    def note_prompt(self, num_rows: int, num_columns: int) -> None:
        """The prompt was processed: `num_rows` of `num_columns` columns."""
        self.is_anew = False
        self._prompt_end, self._ends = num_columns, [num_columns] * num_rows

    def note_block(self, num_block: int) -> None:
        """A block of `num_block` tokens of each row was processed."""
        self._num_open, self.is_anew = num_block, False

    def note_commit(self, ends: list[int]) -> None:
        """What was rejected of it has been taken out: of each row there are columns up to its one of `ends`."""
        self._ends, self._num_open = ends, 0

    def restore(self, num_columns: int) -> bool:
        """Leave in the cache what stands of all rows; where that cannot be done, empty it, say so, and return False.

        Args:
            num_columns (`int`): Columns that stand of the shortest row.
        """
        if self.is_anew:
            is_done = False
        elif self._prompt_end is None:
            is_done = self._num_cached > 0 and cut_back(self._cache, self._num_cached)
        else:
            is_done = self._take_back(max(num_columns, self._prompt_end))
        if not is_done:
            self._cache.reset()
        if not is_done and self._num_cached + (self._prompt_end or 0) > 0:
            warnings.warn(
                "Generation was interrupted in the middle of a pass, and the cache cannot be brought back to before "
                "it. It was emptied: the next generate() with it needs all tokens.",
                stacklevel=2,
            )
        return is_done

    def _take_back(self, num_columns: int) -> bool:
        if self.is_in_pass:
            if not cut_back(self._cache, max(self._ends)):
                return False
            self._num_open = 0
        cuts = [end + self._num_open - num_columns for end in self._ends]
        if min(cuts) < max(cuts):
            compact(self._cache, cuts, num_columns)
        elif self._num_open > 0:
            if not self._rewinder.can_take_back(cuts[0]):
                return False
            self._rewinder.take_back(cuts[0])
        return True
