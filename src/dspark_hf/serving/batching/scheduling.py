"""Which requests go into a step, and how many drafts of each."""

from typing import Any

from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import FIFOScheduler, PrefillFirstScheduler, Scheduler

from dspark_hf.serving.drafting import Running, StepDrafter
from dspark_hf.serving.options import RequestOptions

# Where a request's own options are kept.
OPTIONS, NO_OPTIONS = "options", RequestOptions()


class DraftScheduling(Scheduler):
    """Never lets drafts split a request or starve it: those that do not fit are dropped."""

    drafter: StepDrafter
    is_drafted: bool
    room: dict[str, int]

    def schedule_batch(self, token_budget: int, cache_budget: int) -> tuple:
        self.verified: dict[str, int] = {}
        if not self.is_drafted:
            self.is_drafted = True
            states = list(self.active_requests.values())
            self.drafter.keep(self.active_requests)
            num_prompt_tokens = sum(len(state.remaining_prefill_tokens) for state in states)
            num_prompt_tokens += sum(len(state.remaining_prefill_tokens) for state in self.waiting_requests.values())
            self.drafter.draft([_running(state) for state in states if _is_running(state)], num_prompt_tokens,
                               token_budget)  # fmt: skip
        return super().schedule_batch(token_budget, cache_budget)

    def _process_candidates(self, candidates: list[RequestState], token_budget: int, *args: Any) -> tuple:
        self.room = self._room(candidates, token_budget)
        return super()._process_candidates(candidates, token_budget, *args)

    def _room(self, candidates: list[RequestState], token_budget: int) -> dict[str, int]:
        """Drafts that each request has room for, by what all might have had.

        How many each has rests on drafts, those of the others too: if that decided on what fits, a draft would have a
        part in whether it is verified.
        """
        most = self.drafter.drafts.most
        ends = [place + 1 for place, state in enumerate(candidates) if most.get(state.request_id)]
        candidates = candidates[: ends[-1]] if ends else []
        own = [min(_num_own(state), token_budget) for state in candidates]
        num_free, room = token_budget - sum(own), {}
        for state in candidates:
            room[state.request_id] = max(min(most.get(state.request_id, 0), num_free), 0)
            num_free -= room[state.request_id]
        needed = [
            self._blocks(state, num + room[state.request_id]) for state, num in zip(candidates, own, strict=True)
        ]
        if self.cache.count_storable_requests(needed) < len(needed):
            # Then drafts get what is left of the block that the request's own token takes.
            for state in candidates:
                num, alone = room[state.request_id], self._blocks(state, 1)
                fitting = (count for count in range(num, 0, -1) if self._blocks(state, 1 + count) == alone)
                room[state.request_id] = next(fitting, 0)
        return room

    def _blocks(self, state: RequestState, num_tokens: int) -> dict[str, int]:
        """New blocks that a request's next tokens take."""
        return {
            name: allocator.needs_new_blocks(state.request_id, state.current_len(), num_tokens)
            for name, allocator in self.cache.cache_allocators.items()
        }

    def _infer_request_tokens(self, state: RequestState, request_ids_to_remove_from_waiting: set[str]) -> list[int]:
        drafts = self.drafter.drafts.tokens.get(state.request_id, []) if _is_running(state) else []
        drafts = drafts[: self.room.get(state.request_id, 0)]
        tokens = super()._infer_request_tokens(state, request_ids_to_remove_from_waiting)
        fits = not drafts or self.cache.can_store_request_tokens(state, len(tokens) + len(drafts), dry_run=True)
        return tokens + drafts if fits else tokens

    def _schedule_request(self, state: RequestState, request_tokens: list[int], token_budget: int, *args: Any) -> None:
        is_running = _is_running(state)
        request_tokens = request_tokens[:token_budget] if is_running else request_tokens
        if state.is_cpu_offloaded:
            self.drafter.forget_blocks(state.request_id)
        super()._schedule_request(state, request_tokens, token_budget, *args)
        if is_running:
            state.tokens_to_process = request_tokens
            self.verified[state.request_id] = len(request_tokens) - 1


class DraftFIFO(DraftScheduling, FIFOScheduler):
    """Requests behind their prompts go first."""


class DraftPrefillFirst(DraftScheduling, PrefillFirstScheduler):
    """Prompts go first."""


def options_of(state: RequestState) -> RequestOptions:
    """A request's own options, which the manager has put where transformers keeps those of processors.

    Args:
        state (`RequestState`): The request.
    """
    return state.logit_processor_kwargs.get(OPTIONS) or NO_OPTIONS


def _is_running(state: RequestState) -> bool:
    return state.status == RequestStatus.DECODING and state.generated_len() > 0


def _num_own(state: RequestState) -> int:
    """Tokens of a request that wait to be processed, without drafts."""
    return 1 if _is_running(state) else max(1, len(state.remaining_prefill_tokens))


def _running(state: RequestState) -> Running:
    room = state._new_tokens_limit - state.generated_len() - 1
    anchor = state.generated_tokens[-1]
    return Running(state.request_id, anchor, state.position_offset, max(room, 0), options_of(state))


# By what transformers has made.
DRAFT_SCHEDULERS = {FIFOScheduler: DraftFIFO, PrefillFirstScheduler: DraftPrefillFirst}
