"""What is offered to a round's verification: lookup drafts first, else the drafter's, cut by policy and safety net.

Shapes: B rows at work, n drafts of a round, V vocabulary, L taps, E hidden size.
"""

from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor
from torch.nn.functional import pad

from dspark_hf.generation.lengths.pace import round_cost
from dspark_hf.generation.lengths.policy import length_policy
from dspark_hf.generation.lengths.safety import CollapseWarning, Evidence, SafetyNet
from dspark_hf.generation.request import Request
from dspark_hf.generation.stats import SpeculationStats, Stopwatch
from dspark_hf.generation.target.peers import Peers
from dspark_hf.generation.tokens.sampling import TokenChooser
from dspark_hf.generation.tokens.transcript import Transcript
from dspark_hf.modeling.drafting import Proposal
from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.verify import survival

from .context import PendingContext
from .lookup import LookupSource


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
    """

    ids: Tensor
    candidates: Candidates | None
    lens: list[int]
    from_lookup: list[bool]
    from_drafter: list[bool]
    confidence_logits: Tensor | None = None


class Proposer:
    """Makes the offers of one generation. What is offered depends on nothing but tokens and rounds before it.

    Args:
        request ([`Request`]): What is to be generated: its drafter, and how to speculate.
        chooser ([`TokenChooser`]): Picks draft tokens.
        transcript ([`Transcript`]): The tokens so far.
        context ([`PendingContext`]): What the drafter has read, and asks it.
        stats ([`SpeculationStats`]): Counts what the safety net does.
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
        self._policy = length_policy(speculation)
        self._num_slots = self._policy.limit(drafter.config.num_slots) if has_model else 0
        self._vocab_size = 0
        self._num_candidates = speculation.num_candidates
        self._cost = round_cost(speculation, request.device)
        self._net, self._warning = SafetyNet(speculation.safety_net), None
        if has_model and speculation.safety_net:
            evidence = Evidence.of(drafter, chooser.in_order, len(transcript.lens))
            self._warning = CollapseWarning(drafter, transcript, evidence, is_blind=chooser.in_order)
            # What is drafted decides which random numbers are drawn: a sampled call starts anew, so that a seed
            # repeats it.
            self._net = self._net if chooser.do_sample else evidence.net
        lookup = request.lookup
        self._lookup = None if lookup is None else LookupSource(lookup, SafetyNet(speculation.safety_net))

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
        """Go on with these rows only."""
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
        if self._transcript.in_step:
            # No row can use more drafts than the shortest offer.
            lens = [min(n for n, is_live in zip(lens, live, strict=True) if is_live)] * len(live)
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
        return Offer(ids, candidates, lens, [bool(drafts) for drafts in found], asked, confidence_logits)

    def idle(self) -> None:
        """Run the drafter for the sake of other processes, if there are any."""
        if self._is_synced and self._drafter is not None:
            self._context.propose(self._transcript.anchor_ids, self._num_slots, None, self._num_candidates)

    def learn(
        self, offer: Offer, accepted_lens: list[int], num_taken: list[int], seconds: float | None = None
    ) -> None:
        """Look at what a verification accepted, before rows leave.

        Args:
            offer ([`Offer`]): What was verified.
            accepted_lens (`list[int]`): Drafts that stood, of each row.
            num_taken (`list[int]`): Tokens that each row took, which may be fewer.
            seconds (`float`, *optional*): Time of the round, if it was taken.
        """
        gains = [max(count - 1, 0) for count in num_taken]
        extra = self._extra(offer, seconds)
        if self._lookup is not None:
            price = _share(extra, offer.lens, offer.from_lookup)
            self._lookup.learn(offer.from_lookup, offer.lens, accepted_lens, gains, price)
        if self._drafter is None:
            return
        gains, lens = (list(compress(values, offer.from_drafter)) for values in (gains, offer.lens))
        self._cost.learn(lens, gains)
        price = _share(extra, offer.lens, offer.from_drafter)
        self._net.learn(gains, price, self._cost.pays(self._num_slots))
        self._stats.paused_rounds += self._net.was_paused
        if self._warning is not None:
            judged = [asked and num > 0 for asked, num in zip(offer.from_drafter, offer.lens, strict=True)]
            self._warning.learn(offer.ids, judged, accepted_lens, num_taken, self._net.has_paused)

    def _extra(self, offer: Offer, seconds: float | None) -> float:
        """Note a round's time; plain steps that it took beyond one."""
        is_drafted = any(offer.from_drafter)
        # Nothing to learn from rounds of both sources at once, and from those whose drafts a policy has all dropped.
        has_one_source = self._drafter is None or not any(offer.from_lookup)
        if seconds is not None and has_one_source and (any(offer.lens) or not is_drafted):
            self._cost.note(offer.lens, seconds)
        return self._cost.extra(offer.lens, is_drafted)

    def _draft(self, room: list[int]) -> tuple[list[list[int]], Proposal | None, list[int], list[bool]]:
        """Lookup drafts and the drafter's proposal for the rows without, drafts per row, and rows it was asked for."""
        found = [[] for _ in room]
        if self._lookup is not None:
            limit = self._lookup.net.limit(self._policy.limit(self._lookup.num_slots))
            found = self._lookup.draft(self._transcript, [min(limit, space) for space in room])
            most = self._cost.share(limit, sum(map(bool, found)))
            found = [drafts[:most] for drafts in found]
        lens = [len(drafts) for drafts in found]
        limit = 0
        if self._drafter is not None:
            limit = self._net.limit(self._num_slots)
            limit = self._cost.limit(limit, len(room), max(room) + 1) if limit > 0 else 0
        asked = [limit > 0 and space > 0 and not drafts for space, drafts in zip(room, found, strict=True)]
        lens = [min(limit, space) if ask else n for n, ask, space in zip(lens, asked, room, strict=True)]
        proposal = None
        if any(asked):
            longest = max(n for n, ask in zip(lens, asked, strict=True) if ask)
            # Some drafters use embedding and head once a slot.
            proposal = self._ask_drafter(self._num_slots if self._is_synced else longest)
        else:
            self.idle()
        if self._policy.needs_survival and max(lens) > 0:
            lens = self._policy.choose(lens, self._survival(found, proposal, max(lens)))
        return found, proposal, lens, asked

    def _ask_drafter(self, num_slots: int) -> Proposal:
        transcript = self._transcript
        # The picker writes drafts behind the tokens.
        transcript.reserve(num_slots)
        pick = self._chooser.draft_picker(transcript.ids, transcript.lens, transcript.row_ids, self._vocab_size)
        return self._context.propose(transcript.anchor_ids, num_slots, pick, self._num_candidates)

    def _survival(self, found: list[list[int]], proposal: Proposal | None, num_drafts: int) -> Tensor:
        """Survival `(rows, n)`; that of lookup drafts is estimated from earlier rounds."""
        if proposal is None:
            return self._lookup.survival(num_drafts).expand(len(found), -1)
        values = survival(proposal.confidence_logits)
        if not any(found):
            return values
        values = pad(values, (0, num_drafts - values.shape[1]))
        return torch.where(_are_found(found, values.device), self._lookup.survival(num_drafts).to(values), values)

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
        are_found = _are_found(found, device)
        ids = torch.where(are_found, ids, pad(drafted_ids, (0, num_drafts - drafted_ids.shape[1])))
        if candidates is not None:
            num_candidates = drawn.ids.shape[-1]
            drawn, candidates = drawn.pad(num_drafts, num_candidates), candidates.pad(num_drafts, num_candidates)
            candidates = candidates.where(are_found.unsqueeze(-1), drawn)
        return ids, candidates


def _share(extra: float, lens: list[int], used: list[bool]) -> float:
    """A source's part of a round's extra plain steps, by the drafts it made, per row that it made them for."""
    if not any(used):
        return 0.0
    num_own = sum(num for num, is_own in zip(lens, used, strict=True) if is_own)
    part = num_own / sum(lens) if any(lens) else 1.0
    return extra * part * len(lens) / sum(used)


def _are_found(found: list[list[int]], device: torch.device) -> Tensor:
    """Rows with lookup drafts, `(rows, 1)` bool."""
    return torch.tensor([bool(drafts) for drafts in found], device=device).unsqueeze(1)
