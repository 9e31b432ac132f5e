"""The drafter's context of all requests that are under way.

Shapes: N tokens of a step, R rows of the batch, T tokens of a row, L taps, E hidden size.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dspark_hf.modeling.drafting import PickFn, Proposal

from .block_states import BlockStates
from .read_states import ReadStates

# Tokens whose features may wait: together they cost the drafter little more than one, and they hold little memory.
_MOST_WAITING = 64


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


@dataclass(eq=False)
class _Context:
    """What was read of a request, from one position on without a gap.

    Attributes:
        first, end (`int`): Positions of the first token, and behind the last one.
        is_complete (`bool`): Whether that is all of its text but the last token.
        pieces (`list[tuple[int, int]]`): Where among the states that were read its own begin that the drafter's state
            does not hold yet, and how many they are.
        is_row (`bool`): Whether the drafter's state has a row for it.
    """

    first: int
    end: int
    is_complete: bool = False
    pieces: list[tuple[int, int]] = field(default_factory=list)
    is_row: bool = False


@dataclass
class _Step:
    """What was noted of a step: its tokens, whose they are, and what is shared or to be shared of them.

    Attributes:
        features (`torch.Tensor` of shape `(tokens, taps * hidden)`): Tapped states.
        ids (`torch.LongTensor` of shape `(tokens,)`): The tokens.
        pieces (`list`): A context, the place of its first token, and how many it has.
        found (`list`): A context, where among the states of blocks what stands before it is, and the tokens of that.
        places (`list[int]`): Where states are written for those who will share them.
        sources (`list[int]`): The tokens that those are of.
    """

    features: Tensor
    ids: Tensor
    pieces: list[tuple[_Context, int, int]] = field(default_factory=list)
    found: list[tuple[_Context, list[int], Sequence[int]]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)


class RequestContexts:
    """One state of the drafter for all requests behind their prompts.

    The drafter reads nothing before it is asked: while it is not, features only wait, and are projected many at once.

    A request whose first tokens were read with another's has its context of them from `blocks`. What is not there
    either, as where a request comes back from the memory of the host, is left out: drafts are fewer or worse for it,
    and the output is the same.

    Args:
        drafter ([`DSparkModel`]): The drafter.
        blocks ([`BlockStates`], *optional*): What requests share; nothing, if not given.
    """

    def __init__(self, drafter: Any, blocks: BlockStates | None = None):
        self._drafter, self._blocks = drafter, blocks
        self._contexts: dict[str, _Context] = {}
        self._waiting: list[_Step] = []
        self._read = ReadStates()
        self._rows: list[tuple[str, _Context]] = []
        self._state: Any = None

    def __len__(self) -> int:
        return len(self._contexts)

    def note(
        self, parts: list[Part], features: Tensor, ids: Tensor, text_of: Callable[[str], Sequence[int]] = lambda _: ()
    ) -> None:
        """Take down a step.

        Args:
            parts (`list[Part]`): Whose tokens those are.
            features (`torch.Tensor` of shape `(tokens, taps * hidden)`): Tapped states of all tokens of the step.
            ids (`torch.LongTensor` of shape `(tokens,)`): The tokens.
            text_of (`Callable`, *optional*): From a request to its tokens so far; asked for those that have blocks of
                others.
        """
        step = _Step(features, ids)
        for part in parts:
            context = self._contexts.get(part.request_id)
            if context is None or context.end != part.start:
                context = self._contexts[part.request_id] = self._begin(part, step, text_of)
            context.end, context.is_complete = part.start + part.count, part.is_complete
            step.pieces.append((context, part.begin, part.count))
            if self._blocks is not None:
                step.places += self._blocks.place(part.request_id, part.start, part.count)
                step.sources += range(part.begin, part.begin + part.count)
        self._waiting.append(step)
        if sum(len(step.ids) for step in self._waiting) > _MOST_WAITING:
            self._project()

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
        self._project()
        self._catch_up()
        rows = [request_id for request_id, _ in self._rows]
        anchor_ids = torch.tensor([anchors.get(row, 0) for row in rows], device=self._drafter.device)
        return rows, self._drafter.propose(self._state, anchor_ids, make_pick(rows), num_slots, num_candidates)

    def ends_at(self, request_id: str) -> int | None:
        """Position behind what was read of a request.

        Args:
            request_id (`str`): The request.

        Returns:
            `int`, or None if nothing was.
        """
        context = self._contexts.get(request_id)
        return None if context is None else context.end

    def fork(self, request_id: str, child_id: str) -> None:
        """Let another request go on from where one is in its prompt.

        Args:
            request_id (`str`): The one.
            child_id (`str`): The other.
        """
        context = self._contexts.get(request_id)
        if context is not None and not context.is_complete and child_id not in self._contexts:
            self._project()
            self._contexts[child_id] = _Context(context.first, context.end, pieces=list(context.pieces))
            if self._blocks is not None:
                self._blocks.copy(request_id, child_id)

    def keep(self, request_ids: Collection[str]) -> None:
        """Let go of all other requests.

        Args:
            request_ids (`Collection[str]`): Those that stay.
        """
        for request_id in [one for one in self._contexts if one not in request_ids]:
            del self._contexts[request_id]

    def close(self) -> None:
        """Let go of all requests; those to come share what was read of them, if the drafter can read it."""
        try:
            self._project()
        except Exception:
            # The step that has failed tells why.
            for step in self._waiting:
                if self._blocks is not None:
                    self._blocks.forget_places(step.places)

    def _begin(self, part: Part, step: _Step, text_of: Callable[[str], Sequence[int]]) -> _Context:
        """The context of a request that is new, or goes on elsewhere than where it was."""
        context = _Context(part.start, part.start)
        places = [] if self._blocks is None or part.start == 0 else self._blocks.find(part.request_id, part.start)
        if places:
            context.first -= len(places)
            step.found.append((context, places, text_of(part.request_id)[context.first : part.start]))
        return context

    # Steps are noted outside of the manager's own no_grad, and states would hold on to all that they were made of.
    @torch.no_grad()
    def _project(self) -> None:
        """Let the drafter project what waits, and give it to those who go on from it."""
        steps = self._waiting
        if not steps:
            return
        states = self._drafter.project(torch.cat([step.features for step in steps]).unsqueeze(0)).squeeze(0)  # [N, E]
        ids, begin = torch.cat([step.ids for step in steps]).to(states.device), 0
        first = self._read.add(states, ids)
        for step in steps:
            for context, places, text in step.found:
                token_ids = torch.tensor(list(text), device=states.device)
                context.pieces.append((self._read.add(self._blocks.read(places), token_ids), len(places)))
            if step.places:
                sources = torch.tensor(step.sources, device=states.device) + begin
                self._blocks.write(step.places, states[sources])
            for context, place, count in step.pieces:
                context.pieces.append((first + begin + place, count))
            begin += len(step.ids)
        self._waiting = []
        self._read.compact(context.pieces for context in self._contexts.values())

    @torch.no_grad()
    def _catch_up(self) -> None:
        """Bring the drafter's state up to the end of all contexts that are complete."""
        kept = [place for place, (name, context) in enumerate(self._rows) if self._contexts.get(name) is context]
        # Who stands behind moves to where someone left.
        gone = sorted(set(range(len(kept))) - set(kept))
        kept = [kept.pop() if place in gone else place for place in range(len(kept))]
        if len(kept) < len(self._rows):
            self._rows = [self._rows[place] for place in kept]
            if kept:
                self._state.select(kept)
            else:
                self._state = None
        self._extend(self._state, [context for _, context in self._rows])
        new = [(name, one) for name, one in self._contexts.items() if one.is_complete and not one.is_row]
        for group in _alike(new):
            state = self._drafter.start(len(group))
            state.move_to([context.first for _, context in group])
            self._extend(state, [context for _, context in group])
            if self._state is None:
                self._state = state
            else:
                self._state.join(state)
            self._rows += group
            for _, context in group:
                context.is_row = True
        self._read.compact((context.pieces for context in self._contexts.values()), always=True)

    def _extend(self, state: Any, contexts: list[_Context]) -> None:
        """Append what was read of some requests to a state with a row for each."""
        counts = [sum(count for _, count in context.pieces) for context in contexts]
        if not any(counts):
            return
        places = [list(chain.from_iterable(range(begin, begin + count) for begin, count in context.pieces))
                  for context in contexts]  # fmt: skip
        states, ids = self._read.take([[*row, *[0] * (max(counts) - len(row))] for row in places])
        self._drafter.extend_projected(state, states, None if min(counts) == max(counts) else counts, ids)
        for context in contexts:
            context.pieces.clear()


def _alike(contexts: list[tuple[str, _Context]]) -> list[list[tuple[str, _Context]]]:
    """Groups of contexts that are about as long, so that little is padding."""
    groups: list[list[tuple[str, _Context]]] = []
    for one in sorted(contexts, key=lambda one: one[1].end - one[1].first):
        if groups and _length(one) <= 2 * _length(groups[-1][0]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _length(one: tuple[str, _Context]) -> int:
    return one[1].end - one[1].first
