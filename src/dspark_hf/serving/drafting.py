"""What each request is drafted in a step, and what is learned of it.

Shapes: R requests at work, n slots.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.generation.lengths.calibration import slot_temperatures
from dspark_hf.generation.lengths.prefixes import share_out
from dspark_hf.generation.lengths.schedule import Drafted, Schedule
from dspark_hf.generation.lengths.survival import Signals
from dspark_hf.generation.lengths.track_record import TrackRecord
from dspark_hf.modeling.drafting import PickFn, Proposal

from .block_states import BlockStates
from .choosing import Asked, RequestChoosers
from .contexts import Part, RequestContexts
from .counts import ServingStats
from .options import RequestOptions
from .step_costs import BatchCosts

# Share of a step's tokens that prompts may have before drafts get any.
_OF_PROMPTS = 0.5
# Tokens that each request is taken to have left: requests do not wait for the last one, as the rows of a batch do, so
# all that stands is worth the same.
_FAR = 1_000_000


@dataclass(frozen=True)
class Running:
    """A request behind its prompt.

    Attributes:
        request_id (`str`): The request.
        anchor (`int`): Its last token, which the target has not processed.
        position (`int`): Where that stands.
        room (`int`): Drafts that it has use for.
        options ([`RequestOptions`]): Its own options.
    """

    request_id: str
    anchor: int
    position: int
    room: int
    options: RequestOptions


@dataclass
class Drafts:
    """The drafts of a step.

    Attributes:
        proposal ([`Proposal`]): Of all rows.
        rows (`dict[str, int]`): Each request's row of it.
        tokens (`dict[str, list[int]]`): Each request's drafts, as many as are to be verified.
        most (`dict[str, int]`): How many of each there were before any was looked at.
        order (`list[str]`): The requests at work, those without drafts among them.
        signals (`dict`): What the drafter said of them, of the requests in order.
        survival (`numpy.ndarray` of shape `(requests, slots)`, *optional*): What was made of it.
        context_len (`int`): Tokens before those of the longest request.
        num_prompt_tokens (`int`): Tokens of prompts that wait to go through the same pass.
        began, ended (`float`): When they were asked for, and were there.
    """

    proposal: Proposal | None = None
    rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    survival: np.ndarray | None = None
    context_len: int = 0
    num_prompt_tokens: int = 0
    began: float = 0.0
    ended: float = 0.0


class StepDrafter:
    """Drafts for the steps of a batch that requests come to and leave.

    Args:
        model (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`]): The drafter, bound to it.
        speculation ([`SpeculationConfig`]): How to speculate.
        choosers ([`RequestChoosers`]): Choose the tokens.
        stats ([`ServingStats`]): What is counted.
        blocks ([`BlockStates`], *optional*): What requests share; nothing, if not given.
    """

    def __init__(
        self,
        model: Any,
        drafter: Any,
        speculation: SpeculationConfig,
        choosers: RequestChoosers,
        stats: ServingStats,
        blocks: BlockStates | None = None,
    ):
        self._drafter, self._speculation, self._choosers, self._stats = drafter, speculation, choosers, stats
        self._contexts = RequestContexts(drafter, blocks)
        self._blocks = blocks
        options, num_slots = speculation.scheduler, drafter.config.num_slots
        self._costs = BatchCosts(model, drafter, speculation)
        self._schedule = Schedule(options, self._costs.table, num_slots)
        self._record = TrackRecord(num_slots, 1)
        self._record.predictor.temperatures = slot_temperatures(options.calibration, model, drafter, 1.0)
        self.drafts = Drafts()

    def reset(self) -> None:
        """Let go of all requests."""
        self._contexts.close()
        self._contexts = RequestContexts(self._drafter, self._blocks)
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
        began = time.perf_counter()
        self.drafts = Drafts(
            order=[one.request_id for one in running], began=began, num_prompt_tokens=num_prompt_tokens
        )
        if running:
            self.drafts.context_len = max(one.position for one in running)
            self._draft(running, num_prompt_tokens, most_tokens)
        self.drafts.ended = time.perf_counter()

    def _draft(self, running: list[Running], num_prompt_tokens: int, most_tokens: int) -> None:
        # Prompts go first, up to a share; but drafts never take the place of a request's own token.
        num_free = most_tokens - len(running)
        num_prompt_tokens = min(num_prompt_tokens, int(num_free * _OF_PROMPTS))
        most_drafts = num_free - num_prompt_tokens
        room = [one.room if self._contexts.ends_at(one.request_id) == one.position else 0 for one in running]
        if not any(room) or most_drafts <= 0:
            return
        self._schedule.begin([_FAR] * len(running), self.drafts.context_len, num_prompt_tokens)
        limit = self._schedule.slots(self._record, sum(space > 0 for space in room))
        if self._speculation.max_draft_len is not None:
            limit = min(limit, self._speculation.max_draft_len)
        lens = [min(limit, space) for space in room]
        if max(lens) == 0:
            self._stats.paused_rounds += 1
            return
        if self._costs.wants_plain(len(running), max(room)):
            return
        self._propose(running, lens)
        drafts = self.drafts
        drafts.most = dict(zip(drafts.order, lens, strict=True))
        if self._schedule.cuts_pay(lens):
            lens = self._schedule.cut([self._part(lens)], lens, room=most_drafts)
        elif sum(lens) > most_drafts:
            lens = share_out(self._survival(lens), lens, most_drafts)
        ids = drafts.proposal.ids.tolist()
        for one, num_drafts in zip(running, lens, strict=True):
            if num_drafts > 0:
                drafts.tokens[one.request_id] = ids[drafts.rows[one.request_id]][:num_drafts]

    def asked(self, request_id: str, options: RequestOptions, num_drafts: int, position: int) -> Asked:
        """What is to be judged of a request.

        Args:
            request_id (`str`): The request.
            options ([`RequestOptions`]): Its own options.
            num_drafts (`int`): Its drafts that are in the step.
            position (`int`): Where the first of its next tokens will stand.

        Returns:
            [`Asked`].
        """
        return Asked(options, self.drafts.rows.get(request_id, 0), num_drafts, position)

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

    def timed(self, verified: dict[str, int]) -> None:
        """Take down that a step has ended.

        Args:
            verified (`dict[str, int]`): Drafts of each request behind its prompt that were in it.
        """
        drafts, ended = self.drafts, time.perf_counter()
        if drafts.num_prompt_tokens > 0 or len(verified) < len(drafts.order) or not verified:
            # Tables are of steps without prompts.
            return
        draft = None if drafts.proposal is None else drafts.ended - drafts.began
        num_tokens = len(verified) + sum(verified.values())
        if self._costs.note(len(verified), num_tokens, drafts.context_len, ended - drafts.ended, draft):
            self._schedule.reprice(self._costs.table)

    def note(self, parts: list[Part], features: Tensor, ids: Tensor, text_of: Callable[[str], Sequence[int]]) -> None:
        """Let the drafter read what stands of a step; arguments as of [`RequestContexts.note`]."""
        self._contexts.note(parts, features, ids, text_of)

    def forget_blocks(self, request_id: str) -> None:
        """Take what is known of a request's blocks for lost, as where they are filled from the memory of the host.

        Args:
            request_id (`str`): The request.
        """
        if self._blocks is not None:
            self._blocks.forget_request(request_id)

    def fork(self, request_id: str, child_id: str) -> None:
        """Let a request go on from where another is; arguments as of [`RequestContexts.fork`]."""
        self._contexts.fork(request_id, child_id)

    def keep(self, request_ids: Any) -> None:
        """Let go of all requests but some; arguments as of [`RequestContexts.keep`]."""
        self._contexts.keep(request_ids)

    def _propose(self, running: list[Running], lens: list[int]) -> None:
        drafts = self.drafts
        anchors = {one.request_id: one.anchor for one, num in zip(running, lens, strict=True) if num > 0}
        by_name, nobody = {one.request_id: one for one in running}, Running("", 0, 0, 0, RequestOptions())

        def make_pick(rows: list[str]) -> PickFn | None:
            found = [by_name.get(row, nobody) for row in rows]
            positions = [one.position + 1 for one in found]
            return self._choosers.draft_picker([one.options for one in found], positions, self._drafter.device)

        rows, drafts.proposal = self._contexts.propose(anchors, make_pick, max(lens), self._speculation.num_candidates)
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
