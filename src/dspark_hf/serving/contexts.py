"""The drafter's context of all requests that are under way.

Shapes: N tokens of a step, R rows of the batch, T tokens of a row, L taps, E hidden size.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dspark_hf.generation.drafts.context import PendingContext
from dspark_hf.modeling.drafting import PickFn, Proposal


@dataclass(frozen=True)
class Part:
    """A request's part of a step's tokens.

    Attributes:
        request_id (`str`): The request.
        start (`int`): Position of its first token.
        begin (`int`): Place of that token among all of the step.
        count (`int`): Tokens of it that stand.
        is_complete (`bool`): Whether the target has then read all of its text but the last token.
    """

    request_id: str
    start: int
    begin: int
    count: int
    is_complete: bool = True


class RequestContexts:
    """One state of the drafter for all requests that draft, and one for each prompt that is still read.

    A request whose tokens do not follow what was read of it has its context begin there: its prompt's beginning was
    shared with another request's, or it was preempted. Drafts are fewer or worse for it, and the output is the same.

    Args:
        drafter ([`DSparkModel`]): The drafter.
    """

    def __init__(self, drafter: Any):
        self._drafter = drafter
        self._rows: list[str] = []
        self._batch: PendingContext | None = None
        self._prompts: dict[str, Any] = {}
        # Position of the next token of each request.
        self._ends: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def note(self, parts: list[Part], features: Tensor, ids: Tensor) -> None:
        """Read a step.

        Args:
            parts (`list[Part]`): Whose tokens those are.
            features (`torch.Tensor` of shape `(tokens, taps * hidden)`): Tapped states of all tokens of the step.
            ids (`torch.LongTensor` of shape `(tokens,)`): The tokens.
        """
        following = {part.request_id: part for part in parts if self._ends.get(part.request_id) == part.start}
        # Requests that go on elsewhere begin anew.
        self.keep(set(self._ends) - {part.request_id for part in parts if part.request_id not in following})
        new = [part for part in parts if part.request_id not in self._ends and part.count > 0]
        self._ends |= {part.request_id: part.start + part.count for part in parts}
        self._go_on(following, features, ids)
        for part in parts:
            if part.request_id in self._prompts or (part in new and not part.is_complete):
                self._read_piece(part, features, ids)
        for group in _alike([part for part in new if part.is_complete]):
            state = self._drafter.start(len(group))
            state.move_to([part.start for part in group])
            self._drafter.extend(state, *_rows_of(group, features, ids))
            self._join([part.request_id for part in group], state)

    def propose(
        self,
        anchors: dict[str, int],
        make_pick: Callable[[list[str]], PickFn | None],
        num_slots: int,
        num_candidates: int | None,
    ) -> tuple[list[str], Proposal]:
        """Draft behind requests whose context is complete up to their anchors.

        Args:
            anchors (`dict`): Last known token of each.
            make_pick (`Callable`): From the requests of the rows to the `pick` of [`DSparkModel.propose`].
            num_slots, num_candidates (`int`): As of [`DSparkModel.propose`].

        Returns:
            `tuple(list[str], Proposal)`: Whose rows those of the proposal are, and the proposal. There may be rows of
            others among them, whose drafts are of no use.
        """
        anchor_ids = torch.tensor([anchors.get(row, 0) for row in self._rows], device=self._drafter.device)
        pick = make_pick(self._rows)
        return self._rows, self._batch.propose(anchor_ids, num_slots, pick, num_candidates)

    def ends_at(self, request_id: str) -> int | None:
        """Position behind what was read of a request.

        Args:
            request_id (`str`): The request.

        Returns:
            `int`, or None if nothing was.
        """
        return self._ends.get(request_id)

    def fork(self, request_id: str, child_id: str) -> None:
        """Let another request go on from where one is in its prompt.

        Args:
            request_id (`str`): The one.
            child_id (`str`): The other.
        """
        if request_id in self._prompts and child_id not in self._ends:
            self._prompts[child_id] = copy.deepcopy(self._prompts[request_id])
            self._ends[child_id] = self._ends[request_id]

    def keep(self, request_ids: Collection[str]) -> None:
        """Let go of all other requests.

        Args:
            request_ids (`Collection[str]`): Those that stay.
        """
        if all(request_id in request_ids for request_id in self._ends):
            return
        self._ends = {one: end for one, end in self._ends.items() if one in request_ids}
        self._prompts = {one: state for one, state in self._prompts.items() if one in request_ids}
        places = [place for place, row in enumerate(self._rows) if row in request_ids]
        if len(places) < len(self._rows):
            self._rows = [self._rows[place] for place in places]
            if places:
                self._batch.select(places)
            else:
                self._batch = None

    def _go_on(self, following: dict[str, Part], features: Tensor, ids: Tensor) -> None:
        """Append what stands of rows of the batch."""
        if not any(row in following for row in self._rows):
            return
        nothing = Part("", 0, 0, 0)
        features, counts, ids = _rows_of([following.get(row, nothing) for row in self._rows], features, ids)
        self._batch.add(features, ids, counts)

    def _read_piece(self, part: Part, features: Tensor, ids: Tensor) -> None:
        """Append to a prompt that is read in pieces."""
        state = self._prompts.get(part.request_id)
        if state is None:
            state = self._prompts[part.request_id] = self._drafter.start(1)
            state.move_to([part.start])
        self._drafter.extend(state, *_rows_of([part], features, ids))
        if part.is_complete:
            self._join([part.request_id], self._prompts.pop(part.request_id))

    def _join(self, request_ids: list[str], state: Any) -> None:
        if self._batch is None:
            self._batch = PendingContext(self._drafter, len(request_ids), state)
        else:
            self._batch.state().join(state)
        self._rows += request_ids


def _rows_of(parts: list[Part], features: Tensor, ids: Tensor) -> tuple[Tensor, list[int], Tensor]:
    """Features `(rows, T, taps * hidden)`, how many each row has, and ids `(rows, T)`."""
    counts = [part.count for part in parts]
    begins = torch.tensor([part.begin for part in parts], device=features.device).unsqueeze(1)
    places = begins + torch.arange(max(counts), device=features.device)
    places.clamp_max_(features.shape[0] - 1)
    return features[places], counts, ids[places]


def _alike(parts: list[Part]) -> list[list[Part]]:
    """Groups of parts that are about as long, so that little is padding."""
    groups: list[list[Part]] = []
    for part in sorted(parts, key=lambda part: part.count):
        if groups and part.count <= 2 * groups[-1][0].count:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups
