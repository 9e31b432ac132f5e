"""The decoding loop: prefill, then rounds of propose, verify, commit.

Shapes: B batch, n drafts of a round.
"""

import time

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dspark_hf.modeling.cache_name import CACHE_NAME

from .choosing import choose_runner, tell_ragged
from .drafts.proposing import Offer, Proposer
from .drafts.turns import DraftContext
from .request import Request
from .round_logs import ConfidenceLog, DraftLog
from .static.context import StaticContext
from .static.possible import NotStatic
from .static.runner import StaticRunner
from .stats import SpeculationStats
from .stopwatch import Stopwatch
from .target.decode_kernels import decode_kernels
from .target.layout import PromptLayout
from .target.peers import Peers
from .tokens.sampling import TokenChooser
from .tokens.settling import Settler
from .tokens.stopping import StopRules
from .tokens.transcript import Transcript

# Most tokens of a forward pass over padding.
CATCH_UP_LEN = 64


class SpeculativeLoop:
    """One generation.

    Each row of a batch takes as many drafts as stand, and leaves the work when it has ended, unless the cache is
    returned. Rows grow in step, that is, a round ends where the first row's draft is rejected, where something must
    see the whole batch: a streamer, an unknown or stateful processor, a stopping criterion of the caller,
    recorded hidden states or attentions; and where the target cannot tell rows apart (no position ids, a cache of an
    unknown kind, attention in chunks of columns, rotary frequencies that change with the longest row).

    Args:
        request ([`Request`]): What is to be generated; it has passed the checks.
        layout ([`PromptLayout`]): Where the prompt stands.
    """

    def __init__(self, request: Request, layout: PromptLayout):
        config, speculation = request.generation_config, request.speculation
        self.request = request
        self.stats = SpeculationStats()
        self.watch = Stopwatch(self.stats, request.device, speculation.measure_time)
        self.confidences, self.drafts = ConfidenceLog(), DraftLog(speculation.record_drafts)
        rules = StopRules(request.stopping_criteria, config, request.input_ids.shape[1])
        self.peers = Peers(request.model, request.synced_gpus, request.input_ids.device)
        chooser = TokenChooser(
            request.logits_processor, bool(config.do_sample), request.batch_size, speculation,
            self.peers.agree if self.peers.decide_alike else None,
        )  # fmt: skip
        self.chooser = chooser
        self.target, self.stats.why_ragged = choose_runner(request, layout, rules)
        self.is_static = isinstance(self.target, StaticRunner)
        # A single row has ended when all is over.
        keeps_rows = request.needs_all_rows or request.batch_size == 1 or not self.target.can_drop_rows
        self.transcript = Transcript(request.input_ids, rules, config, keeps_rows, request.streamer)
        self.settler = Settler(chooser, self.transcript)
        self.context = (StaticContext if self.is_static else DraftContext).of(request, layout)
        self.proposer = Proposer(request, chooser, self.transcript, self.context, self.stats, self.watch, self.peers)
        is_watched = request.streamer is not None or self.target.recorder is not None
        self.needs_level_rows = chooser.in_order or rules.needs_level_rows or is_watched

    def run(self) -> Tensor | GenerateDecoderOnlyOutput:
        """Generate to the end."""
        transcript = self.transcript
        try:
            logits = self._read_prompt()
            with decode_kernels(self.request.model):
                self._decode(logits)
            transcript.end()
            self.context.leave()
        except BaseException:
            if self.request.has_user_cache and self.target.restore(transcript.lens):
                with decode_kernels(self.request.model):
                    self._complete_cache()
            raise
        finally:
            self.watch.stop()
            self.target.close()
            self.stats.new_tokens = transcript.num_made
            self.stats.host_reads += self.settler.host_reads
            self.stats.confidences = self.confidences.read()
            self.stats.draft_ids = self.drafts.read()
            self.request.drafter.last_stats = self.stats
        return self._result()

    def _decode(self, logits: Tensor) -> None:
        """From the first new token to the end, and to a complete cache."""
        transcript = self.transcript
        if self.is_static:
            self._prepare_static()
        self.proposer.read_prompt(self.request.prompt_mask, logits.shape[-1])
        num_rows = len(transcript.lens)
        transcript.in_step = num_rows > 1 and (self.needs_level_rows or not self.target.takes_uneven_rows)
        self.settler.settle(logits, transcript.ids[:, :0], None, [0] * num_rows)
        transcript.end_round(accepted_len=0)
        rows = self._rows_to_keep()
        if rows:
            self._drop_others(rows)
            self.target.commit([0] * len(rows), transcript.lens, rows)
        if self.is_static and not transcript.is_over:
            self._enter_static(logits)
        while self.peers.go_on(transcript.is_over):
            if transcript.is_over:
                self._idle()
            elif any(transcript.live):
                self._round()
            else:
                self._catch_up()
        self._complete_cache()

    def _prepare_static(self) -> None:
        """Make buffers for rounds of fixed shapes, or go on with others where there is no room for them."""
        try:
            self.target.prepare(self.request, self.context.state())
            self.stats.round_kind = "static"
            return
        except NotStatic as error:
            if not self.request.may_be_ragged:
                raise
            why = error.what
        except torch.OutOfMemoryError as error:
            why = f"there is no memory for their buffers ({' '.join(str(error).split())[:100]})"
            tell_ragged(why)
        self.is_static, self.stats.why_ragged = False, why
        self.target.stay_ragged()

    def _enter_static(self, logits: Tensor) -> None:
        """From here on, tokens are made on the device by rounds of fixed shapes, and the host only reads them."""
        transcript = self.transcript
        transcript.to_host()
        self.target.enter(
            self.request, self.context.state(), self.chooser, self.stats, logits.shape[-1], transcript.row_ids,
            transcript.anchor_ids.tolist(),
        )  # fmt: skip
        self.context.enter(self.target)
        # Of a round's logits only the number of tokens is asked.
        self._no_logits = logits[:0]

    def _complete_cache(self) -> None:
        """Bring a cache that someone gets to all tokens but the last, as plain `generate()` leaves it."""
        if self.request.returns_cache:
            self.target.replay(self.transcript.ids, self.transcript.lens)

    def _read_prompt(self) -> Tensor:
        """Logits of the first new token; target and drafter have then read the prompt."""
        chunk_size = self.request.generation_config.prefill_chunk_size
        with self.watch.part("prefill"):
            for chunk_logits in self.target.prefill(self.transcript.prefix, chunk_size):
                self.context.read_prompt(self.target.take_prompt())
                logits = chunk_logits
        return logits

    def _round(self) -> None:
        """Propose, verify, settle, learn; then bring cache and context to what stands."""
        transcript = self.transcript
        live, started = transcript.live, time.perf_counter()
        offer = self.proposer.propose(self.target.most_drafts(transcript.lens))
        num_taken, accepted_lens = self._verify(offer)
        self.stats.rounds += 1
        self.proposer.learn(offer, accepted_lens, num_taken, started, self.settler.judged_at)
        # A row may end on a draft, and those behind it did not become output.
        accepted_lens = [min(pair) for pair in zip(accepted_lens, num_taken, strict=True)]
        self._note(offer, live, accepted_lens, num_taken)
        transcript.end_round(accepted_lens[0])
        self._commit(offer.ids.shape[1] + 1, num_taken)

    def _verify(self, offer: Offer) -> tuple[list[int], list[int]]:
        """Tokens that each row takes, and drafts accepted."""
        transcript = self.transcript
        if self.is_static:
            with self.watch.part("target"):
                tokens, accepted_len = self.target.run(offer)
            transcript.note_drafts(tokens)
            return self.settler.take(torch.cat([tokens, accepted_len], 1), None, self._no_logits)
        if offer.ids.shape[1] > 0:
            transcript.note_drafts(offer.ids)
        with self.watch.part("target"):
            logits = self.target.verify(transcript.ids, transcript.lens, offer.lens)
        return self.settler.settle(logits, offer.ids, offer.candidates, offer.lens)

    def _note(self, offer: Offer, live: list[bool], accepted_lens: list[int], num_taken: list[int]) -> None:
        """Write a round down, for whoever asks what happened."""
        for row, row_id in enumerate(self.transcript.row_ids):
            if live[row]:
                looked_up = offer.from_lookup[row] and offer.lens[row] > 0
                drafted_len = offer.num_drafted if offer.from_drafter[row] else offer.lens[row]
                self.stats.record(row_id, offer.lens[row], accepted_lens[row], num_taken[row], looked_up, drafted_len)
        self.confidences.note(live, offer.confidence_logits, offer.from_drafter)
        self.drafts.note(live, offer.ids, offer.lens)
        if self.target.recorder is not None:
            # Rows then grow in step.
            if self.target.is_anew:
                self.target.recorder.note_whole(self.target.outputs)
            else:
                self.target.recorder.note_block(self.target.outputs, num_taken[0], self.target.num_replayed)

    def _commit(self, num_block: int, num_taken: list[int]) -> None:
        """Bring cache and context to what stands of a block, and let go of rows that have ended."""
        transcript = self.transcript
        rows = self._rows_to_keep()
        if rows is not None and not rows:
            return
        num_taken = num_taken if rows is None else [num_taken[row] for row in rows]
        is_read = self.context.is_left or not transcript.is_over
        features = self.target.take_features(max(num_taken), rows) if is_read else None
        self._drop_others(rows)
        # A row's last token is its next anchor, which the target has not processed: of the block's inputs as many
        # stand as tokens were taken.
        self.target.commit([num_block - count for count in num_taken], transcript.lens, rows)
        if features is not None:
            with self.watch.part("drafter"):
                ids = transcript.ids_before_anchors(num_taken)
                self.context.add(features, ids, transcript.count_unpadded(num_taken))

    def _rows_to_keep(self) -> list[int] | None:
        """Rows that go on; None if all do, or all stay until the last has ended."""
        live = self.transcript.live
        if self.transcript.keeps_rows or self.transcript.in_step or all(live):
            return None
        return [row for row, is_live in enumerate(live) if is_live]

    def _drop_others(self, rows: list[int] | None) -> None:
        if rows is not None:
            self.transcript.keep(rows)
            self.context.select(rows)
            self.proposer.select(rows)

    def _catch_up(self) -> None:
        """Process the padding of rows that ended early, up to the longest row: its cache and scores are returned."""
        transcript = self.transcript
        self.proposer.idle()
        counts = [max(transcript.lens) - length for length in transcript.lens]
        num_block = min(max(counts), CATCH_UP_LEN)
        counts = [min(count, num_block) for count in counts]
        transcript.note_drafts(transcript.ids.new_full((len(counts), num_block), transcript.pad_id))
        with self.watch.part("target"):
            logits = self.target.verify(transcript.ids, transcript.lens, [num_block - 1] * len(counts))
        scores = None if transcript.scores is None else self.settler.block_scores(logits)
        transcript.fill(counts, scores, logits)
        self._commit(num_block, counts)

    def _idle(self) -> None:
        """A round for the sake of other processes: it leaves nothing behind."""
        self.proposer.idle()
        lens = self.transcript.lens
        self.target.verify(self.transcript.ids, lens, [0] * len(lens))
        self.target.commit([1] * len(lens), lens)

    def _result(self) -> Tensor | GenerateDecoderOnlyOutput:
        transcript = self.transcript
        if not self.request.generation_config.return_dict_in_generate:
            return transcript.sequences()
        recorder = self.target.recorder
        return GenerateDecoderOnlyOutput(
            sequences=transcript.sequences(),
            scores=_tuple(transcript.scores),
            logits=_tuple(transcript.logits),
            hidden_states=_tuple(recorder and recorder.hidden_states),
            attentions=_tuple(recorder and recorder.attentions),
            **{CACHE_NAME: self.target.cache},
        )


def _tuple(records: list | None) -> tuple | None:
    return None if records is None else tuple(records)
