"""A step from its pass to its end.

Shapes: N tokens of a step, L taps, E hidden size.
"""

import time
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching import continuous_api as api
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from dspark_hf.modeling.taps import Taps
from dspark_hf.serving.contexts import Part
from dspark_hf.serving.counts import ServingStats
from dspark_hf.serving.drafting import StepDrafter
from dspark_hf.serving.quoting import quotable
from dspark_hf.serving.stop_texts import StopTexts

from .inputs import DraftInputs
from .scheduling import DraftScheduling, options_of


class DraftRunner(ModelRunner):
    """Keeps the tapped states of a pass, and judges drafts in place of drawing tokens."""

    taps: Taps
    processor: "DraftProcessor"

    def _forward_process_and_sample(self, model: Any, *args: Any) -> None:
        def tapped(**kwargs: Any) -> Any:
            with self.taps.in_pass() as seen:
                outputs = model(**kwargs, output_hidden_states=self.taps.entries or False)
            taps = self.taps.read(seen, outputs.hidden_states)
            self.features = torch.cat([tap[0] for tap in taps], -1)  # [N, L * E]
            return outputs

        super()._forward_process_and_sample(tapped, *args)

    def _sample(self, scores: Tensor, output_ids: Tensor) -> None:
        self.processor.judge(scores[0])


class DraftProcessor(api.ContinuousBatchProcessor):
    """Settles each step, lets the drafter read what stands, and lives through steps that fail."""

    drafter: StepDrafter
    stats: ServingStats
    scheduler: DraftScheduling
    inputs_and_outputs: DraftInputs
    stop_texts: StopTexts

    def reset(self) -> None:
        super().reset()
        self.drafter.reset()
        self.scheduler.is_drafted = False

    def prepare_next_batch(self) -> bool:
        self.in_step: list[RequestState] = []
        self.scheduler.is_drafted = False
        is_ready = super().prepare_next_batch()
        if is_ready:
            self.in_step = [future.state for future in self.inputs_and_outputs.requests_in_batch]
        else:
            self.drafter.keep(self.scheduler.active_requests)
        return is_ready

    def judge(self, logits: Tensor) -> None:
        """Judge the drafts of a step.

        Args:
            logits (`torch.FloatTensor` of shape `(positions, vocab)`): Those that were asked for.
        """
        io = self.inputs_and_outputs
        asked = [
            self.drafter.asked(
                future.state.request_id, options_of(future.state), num_drafts, start + future.query_length - num_drafts
            )
            for future, start, num_drafts in zip(io.requests_in_batch, io.starts, io.num_drafts, strict=True)
            if future.has_new_token
        ]
        self.verdict = self.drafter.judge(logits, asked) if asked else ([], [])
        self.vocab_size = logits.shape[-1]

    def update_batch(self) -> None:
        parts = self._settle()
        io = self.inputs_and_outputs
        ids = io.input_ids[: io.num_q_tokens].long()
        self.drafter.note(parts, self.model_runner.features, ids, self._text_of)
        has_forks = bool(self.scheduler._requests_to_fork)
        super().update_batch()
        for request_id in self.scheduler.active_requests if has_forks else ():
            # As transformers names those that are to go on from where another is.
            parent_id, is_child, _ = request_id.rpartition("__child#")
            if is_child:
                self.drafter.fork(parent_id, request_id)
        self.drafter.keep(self.scheduler.active_requests)
        self.drafter.timed(self.scheduler.verified)

    def _text_of(self, request_id: str) -> list[int]:
        state = self.scheduler.active_requests[request_id]
        return state.initial_tokens + state.generated_tokens

    def _settle(self) -> list[Part]:
        """Give each request what it takes but the last token, and take back what was rejected."""
        io, drafts_of = self.inputs_and_outputs, self.drafter.drafts.tokens
        verdict = iter(zip(*self.verdict, strict=True))
        parts, io.last_tokens, kept = [], [], []
        accepted_lens, num_taken = {}, {}
        for future, start, begin, num_drafts in zip(
            io.requests_in_batch, io.starts, io.begins, io.num_drafts, strict=True
        ):
            state = future.state
            if future.has_new_token:
                accepted_len, token = next(verdict)
                if token >= self.vocab_size:
                    self._fail(state, ValueError("The target has no distribution here: its scores are not finite."))
                    continue
                taken = [*drafts_of.get(state.request_id, [])[:accepted_len], token]
                taken = self._until_end(taken, state)
                self._take_back(future, start, num_drafts + 1 - len(taken))
                state.generated_tokens += taken[:-1]
                if state.record_timestamps:
                    state._timestamps += [time.perf_counter()] * (len(taken) - 1)
                io.last_tokens.append(taken[-1])
                accepted_lens[state.request_id], num_taken[state.request_id] = accepted_len, len(taken)
                self._count(state.request_id, num_drafts, accepted_len, len(taken))
            kept.append(future)
            parts.append(Part(state.request_id, start, begin, future.query_length, future.has_new_token))
        io.requests_in_batch = kept
        self.stats.rounds += bool(num_taken)
        self.drafter.learn(self.scheduler.verified, accepted_lens, num_taken)
        return parts

    def _until_end(self, taken: list[int], state: RequestState) -> list[int]:
        """What a request takes of tokens that stand: as many as it has room for, up to its end token or text."""
        taken = taken[: max(1, state._new_tokens_limit - state.generated_len())]
        ends = (place for place, token in enumerate(taken) if token in state._eos_token_ids)
        taken = taken[: next(ends, len(taken)) + 1]
        stop_strings = options_of(state).stop_strings
        if not stop_strings:
            return taken
        # A request that began anew has tokens of its answer in its prompt.
        before = (
            state.initial_tokens[state._true_initial_tokens or len(state.initial_tokens) :] + state.generated_tokens
        )
        num_taken = self.stop_texts.num_until(stop_strings, before, taken)
        if num_taken is None:
            return taken
        # transformers ends it then as one that has no more room.
        state._new_tokens_limit = state.generated_len() + num_taken
        return taken[:num_taken]

    def _take_back(self, future: FutureRequestState, start: int, num_rejected: int) -> None:
        """The cache holds what stands of a request's tokens, but for the last one taken."""
        if num_rejected == 0:
            return
        future.query_length -= num_rejected
        future.state.position_offset = start + future.query_length
        if self.cache.use_prefix_sharing:
            # What was rejected must not complete a block that others share.
            sizes = {name: one.tokens_per_page for name, one in self.cache.cache_allocators.items()}
            complete = {name: future.state.position_offset // size - start // size for name, size in sizes.items()}
            future.complete_blocks = {name: count for name, count in complete.items() if count > 0}

    def _count(self, request_id: str, num_drafts: int, accepted_len: int, num_taken: int) -> None:
        stats, accepted_len = self.stats, min(accepted_len, num_taken)
        stats.new_tokens += num_taken
        if request_id in self.scheduler.verified:
            stats.verifications += 1
            stats.emitted_tokens += num_taken
        if num_drafts > 0:
            stats.verified_tokens += num_drafts
            stats.accepted_tokens += accepted_len
            stats.answers.note(request_id, accepted_len, num_drafts - accepted_len)

    def fail_step(self, error: Exception) -> None:
        """A step has failed: those that came with it fail, and those that had been under way before begin it anew.

        Where it cannot be told who is to blame, all that were in it fail.

        Raises:
            `Exception`: `error`, if there is nobody to fail.
        """
        scheduler = self.scheduler
        # Where it broke off while requests were taken out of the queue, some still have a place in it.
        scheduler._cleanup_waiting_queue(set(scheduler.waiting_requests_order) - set(scheduler.waiting_requests))
        states = [state for state in self.in_step if state.request_id in scheduler.active_requests]
        blamed = [state for state in states if state.request_id not in scheduler.verified] or states
        if not states:
            # The step could not even be made.
            states = list(scheduler.active_requests.values()) or list(scheduler.waiting_requests.values())[:1]
            blamed = states[:1]
        if not blamed:
            raise error
        blamed_ids = {state.request_id for state in blamed}
        for state in states:
            if state.request_id in blamed_ids:
                self._fail(state, error)
            else:
                again = state.create_equivalent_initial_request()
                scheduler.finish_request(state.request_id)
                scheduler.add_waiting_request(again)
        scheduler._requests_to_fork.clear()
        scheduler.block_new_requests = False
        self.drafter.reset()

    def _fail(self, state: RequestState, error: Exception) -> None:
        self.stats.failed_requests += 1
        self._handle_request_error(RuntimeError(quotable(str(error))), state)
        self.scheduler.finish_request(state.request_id)
        if self.scheduler.waiting_requests.pop(state.request_id, None) is not None:
            self.scheduler._cleanup_waiting_queue({state.request_id})
