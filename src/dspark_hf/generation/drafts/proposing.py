"""What is offered to a round's verification: lookup drafts first, else the drafter's, as the schedule says.

Shapes: B rows at work, n drafts of a round, V vocabulary, L taps, E hidden size.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dspark_hf.generation.lengths.calibration import slot_temperatures
from dspark_hf.generation.lengths.safety import CollapseWarning, Evidence
from dspark_hf.generation.lengths.schedule import Drafted, Schedule
from dspark_hf.generation.lengths.survival import Signals, certain_signals
from dspark_hf.generation.lengths.track_record import TrackRecord
from dspark_hf.generation.request import Request
from dspark_hf.generation.stats import SpeculationStats
from dspark_hf.generation.stopwatch import Stopwatch
from dspark_hf.generation.target.peers import Peers
from dspark_hf.generation.tokens.sampling import TokenChooser
from dspark_hf.generation.tokens.transcript import Transcript
from dspark_hf.modeling.drafting import Proposal
from dspark_hf.ops.candidates import Candidates

from .context import PendingContext
from .lookup import LookupSource
from .pricing import Pricing


@dataclass
class Offer:
    """Drafts for one verification.

    Attributes:
        ids (`torch.LongTensor` of shape `(rows, n)`): Drafted tokens; behind a row's drafts stands padding.
        candidates ([`Candidates`] of shape `(rows, n, k)`, *optional*): What they were drawn from; None in greedy
            decoding, and without drafts.
        lens (`list[int]`): How many drafts each row is offered.
        from_lookup (`list[bool]`): Rows whose drafts were looked up.
        from_drafter (`list[bool]`): Rows that the drafter was asked for.
        confidence_logits (`torch.Tensor` of shape `(rows, slots)`, *optional*): The drafter's, of all it drafted.
        num_drafted (`int`): Slots that the drafter drafted, of which a policy may have left some out.
    """

    ids: Tensor
    candidates: Candidates | None
    lens: list[int]
    from_lookup: list[bool]
    from_drafter: list[bool]
    confidence_logits: Tensor | None = None
    num_drafted: int = 0


class Proposer:
    """Makes the offers of one generation. What is offered depends on nothing but tokens and rounds before it.

    Args:
        request ([`Request`]): What is to be generated: its drafter, and how to speculate.
        chooser ([`TokenChooser`]): Picks draft tokens.
        transcript ([`Transcript`]): The tokens so far.
        context ([`PendingContext`]): What the drafter has read, and asks it.
        stats ([`SpeculationStats`]): Counts rounds without drafts.
        watch ([`Stopwatch`]): Measures the drafter.
        peers ([`Peers`]): Processes that must draft the same.
    """

    def __init__(
        self,
        request: Request,
        chooser: TokenChooser,
        transcript: Transcript,
        context: PendingContext,
        stats: SpeculationStats,
        watch: Stopwatch,
        peers: Peers,
    ):
        self._chooser, self._transcript, self._context = chooser, transcript, context
        self._stats, self._watch, self._peers = stats, watch, peers
        drafter, speculation = request.drafter, request.speculation
        has_model = request.has_draft_model
        self._drafter = drafter if has_model else None
        # Then every round must run the drafter, because its embedding and head are sharded.
        self._is_synced = request.synced_gpus
        self._most_slots = speculation.max_draft_len
        self._vocab_size = 0
        self._num_candidates = speculation.num_candidates
        num_rows, lookup, num_slots = len(transcript.lens), request.lookup, 0
        self._record, self._warning = None, None
        options = speculation.scheduler
        if has_model:
            num_slots = drafter.config.num_slots
            temperatures = slot_temperatures(options.calibration, request.model, drafter, request.temperature)
            evidence = Evidence.of(drafter, num_slots, chooser.in_order, num_rows)
            # What is drafted decides which random numbers are drawn, and earlier calls may have gone by the clock: a
            # call that a seed must repeat starts anew.
            is_anew = chooser.do_sample or speculation.seed is not None
            self._record = TrackRecord(num_slots, num_rows) if is_anew else evidence.record
            self._record.predictor.temperatures = temperatures
            if options.policy == "auto":
                self._warning = CollapseWarning(drafter, evidence, is_blind=chooser.in_order)
        self._lookup = None if lookup is None else LookupSource(lookup, num_rows)
        most_slots = max(num_slots, 0 if lookup is None else lookup.num_slots)
        self._pricing = Pricing(request, peers)
        stats.costs = self._pricing.source
        if self._record is not None:
            self._record.begin_call(options.probe_interval, self._pricing.base)
        self._schedule = Schedule(options, self._pricing.table, most_slots)
        self._parts: list[Drafted] | None = None
        self._drafted: tuple | None = None
        self._drafted_at: float | None = None

    def read_prompt(self, mask: Tensor | None, vocab_size: int) -> None:
        """Look at the prompt, of which the transcript holds the ids.

        Args:
            mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): Its attention mask.
            vocab_size (`int`): Tokens that the target tells apart.
        """
        self._vocab_size = vocab_size
        if self._lookup is not None:
            self._lookup.read_prompt(self._transcript.prefix, mask, vocab_size)

    def select(self, rows: list[int]) -> None:
        """Go on with these `rows` only, numbers from 0."""
        if self._lookup is not None:
            self._lookup.select(rows)

    def propose(self, most: int | None = None) -> Offer:
        """Draft what the rows have room for, and no more than `most` of a row, if that is given."""
        live = self._transcript.live
        # A round makes one token more than it has drafts.
        room = [left - 1 if is_live else 0 for left, is_live in zip(self._transcript.num_left, live, strict=True)]
        room = room if most is None else [min(left, most) for left in room]
        with self._watch.part("drafter"):
            found, proposal, lens, asked = self._draft(room)
        num_drafts = max(lens)
        ids, candidates = self._transcript.ids[:, :0], None
        if num_drafts > 0:
            ids, candidates = self._merge(found, proposal, num_drafts)
        if not all(live):
            # What plain generate() feeds to rows that have ended.
            ids = torch.where(torch.tensor(live, device=ids.device).unsqueeze(1), ids, self._transcript.pad_id)
        ids, lens = self._peers.agree_on_drafts(ids, lens)
        if ids.shape[1] != num_drafts and self._chooser.do_sample:
            # Where the first process drafts another number its verdict counts alone, so anything does here.
            candidates = Candidates.certain(ids)
        confidence_logits = None if proposal is None else proposal.confidence_logits
        num_drafted = 0 if proposal is None else proposal.ids.shape[1]
        return Offer(ids, candidates, lens, [bool(drafts) for drafts in found], asked, confidence_logits, num_drafted)

    def idle(self) -> None:
        """Run the drafter for the sake of other processes, if there are any."""
        if self._is_synced and self._drafter is not None:
            num_slots = self._record.num_slots
            self._context.propose(self._transcript.anchor_ids, num_slots, None, self._num_candidates)

    def learn(
        self, offer: Offer, accepted_lens: list[int], num_taken: list[int], started: float, judged_at: float | None
    ) -> None:
        """Look at what a verification accepted, before rows leave.

        Args:
            offer ([`Offer`]): What was verified.
            accepted_lens (`list[int]`): Drafts that stood, of each row.
            num_taken (`list[int]`): Tokens that each row took, which may be fewer.
            started (`float`): When the round began.
            judged_at (`float`, *optional*): When its verdict was known; None where that cannot be told.
        """
        if judged_at is not None and self._drafted_at is not None:
            drafted_at = self._drafted_at if any(offer.from_drafter) else started
            num_rows, context_len = len(offer.lens), max(self._transcript.lens)
            self._pricing.note(num_rows, num_rows + sum(offer.lens), context_len, started, drafted_at, judged_at)
        if self._drafted is not None:
            parts = self._read_parts()
            # Where positions are judged one after the other, rows stop where the first does.
            stood = [min(pair) for pair in zip(accepted_lens, offer.lens, strict=True)]
            refused = [taken > num or not self._chooser.in_order for taken, num in zip(num_taken, stood, strict=True)]
            judged = [
                num + (num < most and is_refused)
                for num, most, is_refused in zip(stood, offer.lens, refused, strict=True)
            ]
            gains = [max(min(taken - 1, num), 0) for taken, num in zip(num_taken, offer.lens, strict=True)]
            self._schedule.learn(parts, offer.lens, judged, stood, gains)
        if self._warning is not None:
            asked = [was_asked and num > 0 for was_asked, num in zip(offer.from_drafter, offer.lens, strict=True)]
            new_ids, has_paused = self._transcript.new_ids, self._record.account.has_paused
            self._warning.learn(offer.ids, asked, accepted_lens, num_taken, new_ids, has_paused)

    def _draft(self, room: list[int]) -> tuple[list[list[int]], Proposal | None, list[int], list[bool]]:
        """Lookup drafts and the drafter's proposal for the rows without, drafts per row, and rows it was asked for."""
        self._schedule.begin(self._transcript.num_left, max(self._transcript.lens))
        found, is_plain = [[] for _ in room], self._pricing.wants_plain(self._transcript.num_left)
        if self._lookup is not None and not is_plain:
            limit = self._at_most(self._schedule.slots(self._lookup.record, len(room), is_free=True))
            found = self._lookup.draft(self._transcript, [min(limit, space) for space in room])
        asked = [space > 0 and not drafts for space, drafts in zip(room, found, strict=True)]
        limit = 0
        if self._record is not None and any(asked) and not is_plain:
            limit = self._at_most(self._schedule.slots(self._record, sum(asked)))
            self._stats.paused_rounds += limit == 0
        asked = [limit > 0 and was_asked for was_asked in asked]
        lens = [len(drafts) for drafts in found]
        lens = [min(limit, space) if ask else n for n, ask, space in zip(lens, asked, room, strict=True)]
        proposal = None
        if any(asked):
            longest = max(n for n, ask in zip(lens, asked, strict=True) if ask)
            # Some drafters use embedding and head once a slot.
            proposal = self._ask_drafter(self._record.num_slots if self._is_synced else longest)
        else:
            self.idle()
        live, in_step = self._transcript.live, self._transcript.in_step
        if in_step:
            # No row can use more drafts than the shortest offer.
            level = min(n for n, is_live in zip(lens, live, strict=True) if is_live)
            lens = [level if is_live else 0 for is_live in live]
        self._parts, self._drafted = None, (found, asked, proposal, max(lens)) if max(lens) > 0 else None
        if max(lens) > 0 and self._schedule.cuts_pay(lens):
            lens = self._schedule.cut(self._read_parts(), lens, in_step)
        # Elsewhere than on a CPU, drafts are made when the host has waited for them.
        is_known = proposal is None or self._parts is not None or proposal.ids.device.type == "cpu"
        self._drafted_at = time.perf_counter() if is_known else None
        return found, proposal, [max(lens)] * len(lens) if in_step else lens, asked

    def _at_most(self, num_slots: int) -> int:
        return num_slots if self._most_slots is None else min(num_slots, self._most_slots)

    def _read_parts(self) -> list[Drafted]:
        """This round's drafts by source, with their survival; waits for the device the first time."""
        if self._parts is not None:
            return self._parts
        found, asked, proposal, num_drafts = self._drafted
        self._parts = []
        # Drafts that were read with the round before wait for nobody.
        self._stats.host_reads += proposal is not None and not self._context.reads_ahead
        if any(found):
            rows = [row for row, drafts in enumerate(found) if drafts]
            record, width = self._lookup.record, min(num_drafts, self._lookup.record.num_slots)
            survival = record.predict(certain_signals(len(found), width), len(found), width)
            self._parts.append(Drafted(record, rows, survival, is_free=True))
        if proposal is not None:
            rows, width = [row for row, ask in enumerate(asked) if ask], min(num_drafts, proposal.ids.shape[1])
            signals = Signals(proposal.confidence_logits, proposal.max_probs).read()
            signals = {name: values[:, :width] for name, values in signals.items()}
            survival = self._record.predict(signals, len(found), width)
            self._parts.append(Drafted(self._record, rows, survival))
        return self._parts

    def _ask_drafter(self, num_slots: int) -> Proposal:
        transcript = self._transcript
        # The picker writes drafts behind the tokens.
        transcript.reserve(num_slots)
        pick = self._chooser.draft_picker(transcript.ids, transcript.lens, transcript.row_ids, self._vocab_size)
        return self._context.propose(transcript.anchor_ids, num_slots, pick, self._num_candidates)

    def _merge(
        self, found: list[list[int]], proposal: Proposal | None, num_drafts: int
    ) -> tuple[Tensor, Candidates | None]:
        """Drafts `(rows, n)` of both sources, and what they were drawn from where tokens are drawn."""
        device = self._transcript.ids.device
        if proposal is not None:
            drafted_ids, drawn = proposal.ids[:, :num_drafts].to(device), proposal.candidates
            drawn = None if drawn is None else drawn[:, :num_drafts].to(device)
        if not any(found):
            return drafted_ids, drawn
        rows = [(drafts + [0] * num_drafts)[:num_drafts] for drafts in found]
        ids = torch.tensor(rows, device=device)
        candidates = Candidates.certain(ids) if self._chooser.do_sample else None
        if proposal is None:
            return ids, candidates
        if drawn is None:
            # Greedy; or what the drafter drew from stands on the device, in static rounds.
            candidates = None
        are_found = _are_found(found, device)
        ids = torch.where(are_found, ids, pad(drafted_ids, (0, num_drafts - drafted_ids.shape[1])))
        if candidates is not None:
            num_candidates = drawn.ids.shape[-1]
            drawn, candidates = drawn.pad(num_drafts, num_candidates), candidates.pad(num_drafts, num_candidates)
            candidates = candidates.where(are_found.unsqueeze(-1), drawn)
        return ids, candidates


def _are_found(found: list[list[int]], device: torch.device) -> Tensor:
    """Rows with lookup drafts, `(rows, 1)` bool."""
    return torch.tensor([bool(drafts) for drafts in found], device=device).unsqueeze(1)
