"""What each request is drafted in a step, and what is learned of it.

Shapes: R requests at work, n slots.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.generation.lengths.calibration import slot_temperatures
from dspark_hf.generation.lengths.cost_files import check_cost, circumstances, kept_cost
from dspark_hf.generation.lengths.prefixes import share_out
from dspark_hf.generation.lengths.schedule import Drafted, Schedule
from dspark_hf.generation.lengths.step_cost import StepCost
from dspark_hf.generation.lengths.survival import Signals
from dspark_hf.generation.lengths.track_record import TrackRecord
from dspark_hf.modeling.drafting import Proposal

from .choosing import Asked, RequestChoosers
from .contexts import Part, RequestContexts
from .counts import ServingStats

# Share of a step's tokens that prompts may have before drafts get any.
_OF_PROMPTS = 0.5


@dataclass(frozen=True)
class Running:
    """A request behind its prompt.

    Attributes:
        request_id (`str`): The request.
        anchor (`int`): Its last token, which the target has not processed.
        position (`int`): Where that stands.
        room (`int`): Drafts that it has use for.
        options (`dict`): Its own options.
    """

    request_id: str
    anchor: int
    position: int
    room: int
    options: dict[str, Any]


@dataclass
class Drafts:
    """The drafts of a step.

    Attributes:
        proposal ([`Proposal`]): Of all rows.
        rows (`dict[str, int]`): Each request's row of it.
        tokens (`dict[str, list[int]]`): Each request's drafts, as many as are to be verified.
        order (`list[str]`): The requests at work, those without drafts among them.
        signals (`dict`): What the drafter said of them, of the requests in order.
        survival (`numpy.ndarray` of shape `(requests, slots)`, *optional*): What was made of it.
    """

    proposal: Proposal | None = None
    rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    survival: np.ndarray | None = None


class StepDrafter:
    """Drafts for the steps of a batch that requests come to and leave.

    Args:
        model (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`]): The drafter, bound to it.
        speculation ([`SpeculationConfig`]): How to speculate.
        choosers ([`RequestChoosers`]): Choose the tokens.
        stats ([`ServingStats`]): What is counted.
    """

    def __init__(
        self, model: Any, drafter: Any, speculation: SpeculationConfig, choosers: RequestChoosers, stats: ServingStats
    ):
        self._drafter, self._speculation, self._choosers, self._stats = drafter, speculation, choosers, stats
        options, num_slots = speculation.scheduler, drafter.config.num_slots
        self._schedule = Schedule(options, _table(model, drafter, speculation), num_slots)
        self._record = TrackRecord(num_slots, 1)
        self._record.predictor.temperatures = slot_temperatures(options.calibration, model, drafter, 1.0)
        self.reset()

    def reset(self) -> None:
        """Let go of all requests."""
        self._contexts = RequestContexts(self._drafter)
        self.drafts = Drafts()

    @property
    def num_requests(self) -> int:
        """Requests whose context is kept."""
        return len(self._contexts)

    def draft(self, running: list[Running], num_prompt_tokens: int, most_tokens: int) -> None:
        """Draft for a step.

        Args:
            running (`list[Running]`): The requests behind their prompts.
            num_prompt_tokens (`int`): Tokens of prompts that wait to be processed.
            most_tokens (`int`): Tokens that go through the target at once.
        """
        self.drafts = Drafts(order=[one.request_id for one in running])
        # Prompts go first, up to a share; but drafts never take the place of a request's own token.
        num_free = most_tokens - len(running)
        num_prompt_tokens = min(num_prompt_tokens, int(num_free * _OF_PROMPTS))
        most_drafts = num_free - num_prompt_tokens
        room = [one.room if self._contexts.ends_at(one.request_id) == one.position else 0 for one in running]
        if not any(room) or most_drafts <= 0:
            return
        self._schedule.begin([1] * len(running), max(one.position for one in running), num_prompt_tokens)
        limit = self._schedule.slots(self._record, sum(space > 0 for space in room))
        if self._speculation.max_draft_len is not None:
            limit = min(limit, self._speculation.max_draft_len)
        lens = [min(limit, space) for space in room]
        if max(lens) == 0:
            self._stats.paused_rounds += 1
            return
        self._propose(running, lens)
        drafts = self.drafts
        if self._schedule.cuts_pay(lens):
            lens = self._schedule.cut([self._part(lens)], lens)
        if sum(lens) > most_drafts:
            lens = share_out(self._survival(lens), lens, most_drafts)
        ids = drafts.proposal.ids.tolist()
        for one, num_drafts in zip(running, lens, strict=True):
            if num_drafts > 0:
                drafts.tokens[one.request_id] = ids[drafts.rows[one.request_id]][:num_drafts]

    def asked(self, request_id: str, options: dict[str, Any], num_drafts: int) -> Asked:
        """What is to be judged of a request.

        Args:
            request_id (`str`): The request.
            options (`dict`): Its own options.
            num_drafts (`int`): Its drafts that are in the step.

        Returns:
            [`Asked`].
        """
        return Asked(options, self.drafts.rows.get(request_id, 0), num_drafts)

    def judge(self, logits: Tensor, asked: list[Asked]) -> tuple[list[int], list[int]]:
        """As of [`RequestChoosers.judge`], with this step's drafts."""
        proposal = self.drafts.proposal
        ids, candidates = (None, None) if proposal is None else (proposal.ids, proposal.candidates)
        return self._choosers.judge(logits, asked, ids, candidates)

    def learn(self, verified: dict[str, int], accepted: dict[str, int], taken: dict[str, int]) -> None:
        """Look at what became of a step's drafts.

        Args:
            verified (`dict[str, int]`): Drafts of each request that were verified.
            accepted (`dict[str, int]`): Drafts that stood.
            taken (`dict[str, int]`): Tokens that became output, which may be fewer.
        """
        drafts = self.drafts
        if not any(verified.values()) or drafts.proposal is None:
            return
        lens = [verified.get(one, 0) for one in drafts.order]
        stood = [accepted.get(one, 0) for one in drafts.order]
        judged = [num + (num < most) for num, most in zip(stood, lens, strict=True)]
        gains = [max(min(taken.get(one, 0) - 1, num), 0) for one, num in zip(drafts.order, lens, strict=True)]
        self._schedule.learn([self._part(lens)], lens, judged, stood, gains)

    def note(self, parts: list[Part], features: Tensor, ids: Tensor) -> None:
        """Let the drafter read what stands of a step; arguments as of [`RequestContexts.note`]."""
        self._contexts.note(parts, features, ids)

    def fork(self, request_id: str, child_id: str) -> None:
        """Let a request go on from where another is; arguments as of [`RequestContexts.fork`]."""
        self._contexts.fork(request_id, child_id)

    def keep(self, request_ids: Any) -> None:
        """Let go of all requests but some; arguments as of [`RequestContexts.keep`]."""
        self._contexts.keep(request_ids)

    def _propose(self, running: list[Running], lens: list[int]) -> None:
        drafts = self.drafts
        anchors = {one.request_id: one.anchor for one, num in zip(running, lens, strict=True) if num > 0}
        options = {one.request_id: one.options for one in running}
        rows, drafts.proposal = self._contexts.propose(
            anchors,
            lambda ids: self._choosers.draft_picker([options.get(one, {}) for one in ids], self._drafter.device),
            max(lens),
            self._speculation.num_candidates,
        )
        drafts.rows = {request_id: row for row, request_id in enumerate(rows)}
        self._stats.drafted_tokens += len(anchors) * max(lens)

    def _part(self, lens: list[int]) -> Drafted:
        rows = [row for row, num in enumerate(lens) if num > 0]
        return Drafted(self._record, rows, self._survival(lens))

    def _survival(self, lens: list[int]) -> np.ndarray:
        """Survival of the step's drafts, `(requests, slots)`, in the order of the requests."""
        drafts = self.drafts
        if drafts.survival is None:
            proposal = drafts.proposal
            signals = Signals(proposal.confidence_logits, proposal.max_probs).read()
            # Requests without drafts have no row; what stands there is not looked at.
            rows = [drafts.rows.get(one, 0) for one in drafts.order]
            width = proposal.ids.shape[1]
            signals = {name: values[rows, :width] for name, values in signals.items()}
            drafts.survival = self._record.predict(signals, len(rows), width)
        return drafts.survival


def _table(model: Any, drafter: Any, speculation: SpeculationConfig) -> StepCost:
    """What passes take: the caller's table, what was measured here for these models, or a rule of thumb."""
    given = speculation.scheduler.step_cost
    made_for = circumstances(model, drafter)
    if given is not None:
        if given.made_for:
            check_cost(given, made_for)
        return given
    kept = kept_cost(made_for)
    return StepCost.rule_of_thumb(model.device, model.dtype) if kept is None else kept
