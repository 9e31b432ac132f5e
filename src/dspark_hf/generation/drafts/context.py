"""The drafter's context while decoding, brought up to date only when the drafter is asked.

Shapes: B rows, T tokens, L taps, E hidden size.
"""

from typing import Any

import torch
from torch import Tensor

from dspark_hf.modeling.drafting import PickFn, Proposal

# Tokens that may wait: so many cost the drafter little more than one, and hold little memory.
MAX_WAITING = 64


class PendingContext:
    """Context of one generation. Features wait until a proposal needs them, and enter the drafter together.

    Rounds without a proposal thus cost the drafter next to nothing.

    Args:
        drafter ([`DSparkModel`]): The drafter.
        batch_size (`int`): Number of rows.
        state ([`DraftState`], *optional*): Context to go on with; an empty one, if not given.
    """

    # Whether proposals are on the host already when they are asked for.
    reads_ahead = False

    def __init__(self, drafter: Any, batch_size: int, state: Any = None):
        self._drafter = drafter
        self._state = drafter.start(batch_size) if state is None else state
        self._waiting: list[tuple[Tensor, Tensor, list[int]]] = []

    def add(self, features: Tensor, ids: Tensor, counts: list[int] | None = None) -> None:
        """Append tapped states.

        Args:
            features (`torch.Tensor` of shape `(rows, tokens, taps * hidden)`): Tapped states of the next positions.
            ids (`torch.LongTensor` of shape `(rows, tokens)`): The tokens there.
            counts (`list[int]`, *optional*): How many of the tokens each row keeps; all, if not given.
        """
        counts = [features.shape[1]] * features.shape[0] if counts is None else counts
        self._waiting.append((features, ids, counts))
        if sum(waiting.shape[1] for waiting, _, _ in self._waiting) > MAX_WAITING:
            self._flush()

    def select(self, rows: list[int]) -> None:
        """Keep only these `rows`, numbers from 0, in this order."""
        self._waiting = [
            (features[rows], ids[rows], [counts[row] for row in rows]) for features, ids, counts in self._waiting
        ]
        self._state.select(rows)

    def propose(
        self, anchor_ids: Tensor, num_slots: int, pick: PickFn | None = None, num_candidates: int | None = None
    ) -> Proposal:
        """The drafter's proposal behind everything that was added; arguments as of [`DSparkModel.propose`]."""
        anchor_ids = anchor_ids.to(self._drafter.device)
        return self._drafter.propose(self.state(), anchor_ids, pick, num_slots, num_candidates)

    def state(self) -> Any:
        """The drafter's own state, with everything that was added."""
        if self._waiting:
            self._flush()
        return self._state

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        features, ids, counts = waiting[0] if len(waiting) == 1 else _join(waiting)
        is_even = min(counts) == features.shape[1]
        self._drafter.extend(self._state, features, None if is_even else counts, ids)


def align_left(features: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Move what `mask` keeps to the front of each row.

    Args:
        features (`torch.Tensor` of shape `(rows, tokens, width)`): Features of all columns.
        ids (`torch.LongTensor` of shape `(rows, tokens)`): Their tokens.
        mask (`torch.BoolTensor` of shape `(rows, tokens)`): Columns to keep; padding may stand on either side.

    Returns:
        `tuple(torch.Tensor, torch.Tensor, list[int])`: Features and tokens up to the longest row, and how many each
        row has.
    """
    mask = mask.to(features.device)
    counts = mask.sum(1).tolist()
    order = (~mask).int().argsort(dim=1, stable=True)[:, : max(counts)]
    features = features.gather(1, order.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
    return features, ids.gather(1, order.to(ids.device)), counts


def _join(chunks: list[tuple[Tensor, Tensor, list[int]]]) -> tuple[Tensor, Tensor, list[int]]:
    """Chunks that follow each other as one, each row's tokens without gaps."""
    features, ids = (torch.cat(tensors, 1) for tensors in list(zip(*chunks, strict=True))[:2])
    counts = [sum(column) for column in zip(*(counts for _, _, counts in chunks), strict=True)]
    if min(counts) == features.shape[1]:
        return features, ids, counts
    kept = [_first(counts, chunk.shape[1], features.device) for chunk, _, counts in chunks]
    return align_left(features, ids, torch.cat(kept, 1))


def _first(counts: list[int], num_tokens: int, device: torch.device) -> Tensor:
    """Which of `num_tokens` columns are a row's first `counts[row]`, `(rows, num_tokens)` bool."""
    return torch.arange(num_tokens, device=device) < torch.tensor(counts, device=device).unsqueeze(1)
