"""The drafter's context in static rounds."""

from torch import Tensor

from dspark_hf.generation.drafts.turns import DraftContext
from dspark_hf.modeling.drafting import PickFn, Proposal

from .runner import StaticRunner


class StaticContext(DraftContext):
    """Reads the prompt as always; behind it, static rounds read features and draft, and proposals are theirs."""

    _rounds: StaticRunner | None = None

    @property
    def reads_ahead(self) -> bool:
        return self._rounds is not None

    def enter(self, rounds: StaticRunner) -> None:
        """Go on with the context in the buffers of static `rounds`."""
        self._rounds, self._state = rounds, None

    def select(self, rows: list[int]) -> None:
        if self._rounds is None:
            super().select(rows)

    def propose(
        self, anchor_ids: Tensor, num_slots: int, pick: PickFn | None = None, num_candidates: int | None = None
    ) -> Proposal:
        """The drafts that stand in the buffers, on the host."""
        if self._rounds is None:
            return super().propose(anchor_ids, num_slots, pick, num_candidates)
        return self._rounds.drafted(num_slots)

    def leave(self) -> None:
        """Nothing to leave: the cache is nobody's."""
