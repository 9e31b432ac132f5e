"""The host's side of static rounds: which bucket a round takes, what it is told beforehand, and what it is read after.

Shapes: R rows of a bucket, w tokens of a row's pass, G slots.
"""

import warnings
import weakref
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dspark_hf.generation.drafts.proposing import Offer
from dspark_hf.generation.request import Request
from dspark_hf.generation.stats import SpeculationStats
from dspark_hf.generation.target.flat import FlatRunner
from dspark_hf.generation.tokens.sampling import TokenChooser
from dspark_hf.modeling.drafting import Proposal

from .buffers import Bucket, Buffers, bucket_columns, bucket_rows, bucket_width, num_bytes, shapes_of
from .graphs import CapturedRounds, addresses_of, options_of, why_not_captured
from .possible import NotStatic, check_room
from .round import Report, StaticRound

# Buffers of each target, until it goes: graphs that were captured on them hold their addresses.
_kept: "weakref.WeakKeyDictionary[nn.Module, Kept]" = weakref.WeakKeyDictionary()


class Kept(NamedTuple):
    """What a call leaves for the next one with the same target and drafter.

    Attributes:
        drafter (`weakref.ref`, *optional*): The drafter; None for lookup alone.
        buffers ([`Buffers`]): Their buffers.
        graphs ([`CapturedRounds`], *optional*): Graphs on them.
        addresses (`int`): As of [`addresses_of`], when they were captured.
    """

    drafter: weakref.ref | None
    buffers: Buffers
    graphs: CapturedRounds | None
    addresses: int


class StaticRunner(FlatRunner):
    """A target whose rounds have fixed shapes, and a drafter whose drafts are made in them.

    The prompt is processed as always. Then `prepare` makes buffers, and `enter` takes over the cache and the drafter's
    context; or `stay_ragged` goes on without.

    Args: as of [`TargetRunner`].

    Raises:
        [`NotStatic`]: If rows cannot be told apart.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not self._may_pack():
            raise NotStatic(
                f"{type(self._model).__name__} with these inputs, whose rows cannot be told apart by their positions "
                "alone"
            )
        self._round: StaticRound | None = None
        self._buffers: Buffers | None = None
        self._report: Report | None = None
        self._has_drafts = False

    def _take_over(self) -> None:
        """Not yet: rounds have buffers of their own, and take the cache when the drafter has read the prompt."""

    def stay_ragged(self) -> None:
        """Go on as a [`FlatRunner`], behind the prompt."""
        self._buffers = None
        if self._is_flat:
            super()._take_over()

    def prepare(self, request: Request, state: Any) -> None:
        """Make buffers, or take those of an earlier call.

        Args:
            request ([`Request`]): What is to be generated: its drafter, and how to speculate.
            state ([`DraftState`]): The drafter's context of the prompt.

        Raises:
            [`NotStatic`]: If what was rejected could not be masked in this target; or, where that is left to this
                library, if the buffers would take too much of what memory is left.
        """
        if not self._is_flat:
            raise NotStatic(
                f"{type(self._model).__name__}, in which not every layer asks transformers' attention interface with "
                "a mask of transformers, so that what was rejected cannot be masked"
            )
        self._drafter = request.drafter if request.has_draft_model else None
        self._num_slots = request.drafter.config.num_slots if request.has_draft_model else request.drafter.num_slots
        self._width = 1 + self._num_slots
        num_columns = self._columns.most_columns + 2 * self._width
        columns = bucket_columns(max(num_columns, request.generation_config.max_cache_len or 0))
        rows, kept = bucket_rows(request.batch_size), _kept.pop(self._model, None)
        self._addresses = addresses_of(request)
        if kept is not None and (kept.drafter and kept.drafter()) is self._drafter:
            if kept.buffers.fits(self.cache, state, rows, columns, self._num_slots):
                self._buffers = kept.buffers
                self._graphs = kept.graphs if kept.addresses == self._addresses else None
                return
            if kept.buffers.made_for == shapes_of(self.cache, state):
                rows, columns = max(rows, kept.buffers.num_rows), max(columns, kept.buffers.num_columns)
        # The old ones go before the new are made.
        del kept
        if request.may_be_ragged:
            check_room(num_bytes(self.cache, state, rows, columns), request.device)
        self._buffers, self._graphs = Buffers(self.cache, state, rows, columns, self._num_slots), None

    def enter(
        self, request: Request, state: Any, chooser: TokenChooser, stats: SpeculationStats, vocab_size: int,
        rows: list[int], anchor_ids: list[int],
    ) -> None:  # fmt: skip
        """Begin with rounds, behind each row's first new token.

        Args:
            request ([`Request`]): That of `prepare`.
            state ([`DraftState`]): The drafter's context of the rows that go on.
            chooser ([`TokenChooser`]): Turns logits into tokens.
            stats ([`SpeculationStats`]): Counts rounds of each bucket, and host reads.
            vocab_size (`int`): Tokens that the target tells apart.
            rows (`list[int]`): Rows of the prompt that go on.
            anchor_ids (`list[int]`): Their last tokens.
        """
        drafter, num_candidates = self._drafter, request.speculation.num_candidates
        self._stats, self._num_rows = stats, bucket_rows(len(rows))
        compiles = request.speculation.compile
        self._round = StaticRound(self._model, drafter, chooser, num_candidates, vocab_size, compiles)
        self._options, self._held = None, list(chooser.processors)
        why = why_not_captured(request)
        if why is not None and request.device.type == "cuda":
            warnings.warn(f"Rounds are not captured in CUDA graphs: {why}.", stacklevel=2)
        if why is None:
            self._options = options_of(request, vocab_size)
            self._graphs = self._graphs or CapturedRounds(request.device)
        self._num_candidates = None
        if chooser.do_sample:
            # What was looked up could have been nothing else.
            most = 1 if drafter is None else drafter.num_outputs
            self._num_candidates = min(num_candidates or most, most)
        self._load(state, rows, anchor_ids)

    def _load(self, state: Any, rows: list[int], anchor_ids: list[int]) -> None:
        buffers, num_prompt = self._buffers, self._layout.num_columns
        buffers.load(self.cache, state, num_prompt, rows, self._num_rows)
        count, device = len(rows), buffers.lens.device
        positions = self._columns.position_ids.to(device)  # [B, C], laid out for the rows that go on
        mask = self._columns.mask
        if mask is not None:
            buffers.visible[:count, :num_prompt] = mask[:, :num_prompt].bool().to(device)
        last = positions[:, num_prompt - 1]
        context_lens = torch.tensor(state.context_lens, device=device)
        first_positions = torch.tensor(state.first_positions, device=device)
        buffers.block[:count, 0] = torch.tensor(anchor_ids, device=device)
        buffers.lens[:count] = num_prompt
        buffers.shift[:count] = last - (num_prompt - 1)
        # The last token is never processed, so a table of positions may end before it.
        buffers.last_position[:count] = last + max(self._columns.most_columns - num_prompt - 1, 0)
        buffers.context_shift[:count] = context_lens - num_prompt
        buffers.first_positions[:count] = first_positions
        self._places, self._told, self._has_drafts = list(range(count)), None, False
        self._end = num_prompt + 1
        for layer in self.cache.layers:
            # What the prompt left has been copied.
            layer.reset()

    def drafted(self, num_slots: int) -> Proposal:
        """The next block's first `num_slots` drafts, of the rows at work; the round before has made them, unless
        drafts paused.
        """
        if not self._has_drafts:
            self._launch(0, drafts=True)
        return self._report.proposal(num_slots)

    def most_drafts(self, lens: list[int]) -> int | None:
        most = super().most_drafts(lens)
        return most if self._round is None else min(self._num_slots, self._num_slots if most is None else most)

    def run(self, offer: Offer) -> tuple[Tensor, Tensor]:
        """One round.

        Args:
            offer ([`Offer`]): Drafts of the rows at work. The drafter's own are on the device already; it drafts the
                next block if it was asked for these.

        Returns:
            `tuple(torch.LongTensor, torch.LongTensor)`: Tokens `(rows, w)`, of which accepted drafts and one more
            stand, and how many drafts were accepted `(rows, 1)`, on the host.
        """
        self._settle_rows()
        self._tell(offer)
        most = max(offer.lens) + 1
        self._launch(bucket_width(most, self._width), any(offer.from_drafter))
        # A bucket may be wider than what is offered, and than what a text has room for.
        return self._report.tokens(most)

    def _settle_rows(self) -> None:
        """Take a smaller bucket where enough rows have ended."""
        num_rows = bucket_rows(len(self._places))
        if num_rows < self._num_rows:
            self._buffers.move(self._places, num_rows)
            self._num_rows, self._places, self._told = num_rows, list(range(len(self._places))), None

    def _tell(self, offer: Offer) -> None:
        """Say on the device how many drafts of a row are verified, which rows have ended, and what was looked up."""
        offered = [-1] * self._num_rows
        for place, count in zip(self._places, offer.lens, strict=True):
            offered[place] = count
        if offered != self._told:
            self._told = offered
            self._buffers.offered[: self._num_rows].copy_(self._sent(torch.tensor(offered)))
        if any(offer.from_lookup):
            found = torch.full((self._num_rows, self._num_slots), -1)
            for row, place in enumerate(self._places):
                if offer.from_lookup[row]:
                    found[place, : offer.lens[row]] = offer.ids[row, : offer.lens[row]]
            self._buffers.tell(self._sent(found))

    def _sent(self, values: Tensor) -> Tensor:
        """Values of the host on the device, without waiting for it."""
        device = self._buffers.lens.device
        values = values.pin_memory() if device.type == "cuda" else values
        return values.to(device, non_blocking=True)

    def _launch(self, width: int, drafts: bool) -> None:
        """Run a bucket's round, and read its report: the round's one wait for the device."""
        # Behind the tokens that are verified comes the next block.
        num_columns = bucket_columns(self._end + 2 * self._width)
        bucket = Bucket(self._num_rows, width, num_columns, drafts)
        view = self._buffers.view(self._num_rows, num_columns, self._num_candidates)
        if self._options is None:
            self._round.run(view, bucket)
        else:
            num_before = self._graphs.num_graphs
            launch = partial(self._round.run, view, bucket)
            self._graphs.run((bucket, self._num_candidates, self._options), launch, view.changed(), self._held)
            self._stats.graphs += self._graphs.num_graphs - num_before
        self._has_drafts = drafts
        self._stats.note_bucket(str(bucket))
        has_confidence = getattr(self._drafter, "confidence_head", None) is not None
        self._report = Report(self._read(view.report), self._num_slots, has_confidence)
        self._report.keep(self._places)

    def _read(self, report: Tensor) -> Tensor:
        self._stats.host_reads += 1
        return report.to("cpu", copy=True) if self._options is None else self._graphs.read(report)

    def take_features(self, num_tokens: int | None = None, rows: list[int] | None = None) -> Tensor | None:
        # In static rounds the drafter has read them.
        return super().take_features(num_tokens, rows) if self._buffers is None else None

    def commit(self, num_rejected: list[int], lens: list[int], rows: list[int] | None = None) -> None:
        """Let go of rows that have ended; what was rejected is written over."""
        if self._buffers is None:
            super().commit(num_rejected, lens, rows)
            return
        self._end = max(lens) + self._layout.shift
        if rows is None:
            return
        if self._round is None:
            self._columns.keep_rows(rows)
            return
        self._places = [self._places[row] for row in rows]
        self._report.keep(rows)

    def close(self) -> None:
        super().close()
        buffers, self._buffers = self._buffers, None
        if buffers is not None:
            drafter = None if self._drafter is None else weakref.ref(self._drafter)
            _kept[self._model] = Kept(drafter, buffers, self._graphs, self._addresses)


def release(model: nn.Module) -> None:
    """Let go of the buffers and graphs that static rounds of a target have left for the next call.

    Args:
        model (`torch.nn.Module`): The target.
    """
    _kept.pop(model, None)
