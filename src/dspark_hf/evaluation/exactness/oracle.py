"""A drafter that knows how each row goes on, to bring about rounds of every accepted length."""

from collections.abc import Sequence

from torch import Tensor

from dspark_hf.modeling import DSparkModel, Proposal
from dspark_hf.modeling.context import DraftState
from dspark_hf.modeling.drafting import PickFn


class _RowTracker(DraftState):
    """Context that remembers which rows of the first batch its rows are."""

    def __init__(self, batch_size: int, num_layers: int):
        super().__init__(batch_size, num_layers)
        self.row_ids = list(range(batch_size))

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.row_ids = [self.row_ids[row] for row in rows]


class OracleDrafter(DSparkModel):
    """A drafter whose greedy drafts are put right, `pattern[(round + row) % len(pattern)]` of them in a round.

    Its own drafts stand behind those, and all of them are its own when sampling. Make one with `from_target`, like any
    drafter, and give it `texts`.

    Attributes:
        texts (`list[list[int]]`): Token ids of each row, the prompt without padding and its continuation.
        pattern (`Sequence[int]`): How many drafts are put right.
    """

    texts: Sequence[Sequence[int]] = ()
    pattern: Sequence[int] = (0,)
    num_proposals = 0

    def start(self, batch_size: int) -> DraftState:
        return _RowTracker(batch_size, len(self.layers))

    def propose(
        self,
        state: DraftState,
        anchor_ids: Tensor,
        pick: PickFn | None = None,
        num_slots: int | None = None,
        num_candidates: int | None = None,
    ) -> Proposal:
        proposal = super().propose(state, anchor_ids, pick, num_slots, num_candidates)
        if proposal.candidates is not None:
            return proposal  # a token that was not drawn would be a lie about the distribution
        places = state.positions(1, anchor_ids.device).expand(len(anchor_ids), 1)[:, 0].tolist()
        for row, (row_id, place) in enumerate(zip(state.row_ids, places, strict=True)):
            num_right = self.pattern[(self.num_proposals + row_id) % len(self.pattern)]
            known = list(self.texts[row_id][place + 1 :][: min(num_right, proposal.ids.shape[1])])
            proposal.ids[row, : len(known)] = proposal.ids.new_tensor(known)
        self.num_proposals += 1
        return proposal
