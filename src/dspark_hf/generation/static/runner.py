"""The host's side of static rounds: which bucket a round takes, what it is told beforehand, and what it is read after.

Shapes: R rows of a bucket, w tokens of a row's pass, G slots.
"""

import warnings
import weakref
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dspark_hf.generation.request import Request
from dspark_hf.generation.stats import SpeculationStats
from dspark_hf.generation.target.flat import FlatRunner
from dspark_hf.generation.tokens.sampling import TokenChooser
from dspark_hf.modeling.drafting import Proposal

from .buffers import Bucket, Buffers, bucket_columns, bucket_rows, bucket_width, shapes_of
from .graphs import CapturedRounds, addresses_of, options_of, why_not_captured
from .round import Report, StaticRound

# Buffers of each target, until it goes: graphs that were captured on them hold their addresses.
_kept: "weakref.WeakKeyDictionary[nn.Module, Kept]" = weakref.WeakKeyDictionary()


class Kept(NamedTuple):
    """What a call leaves for the next one with the same target and drafter.

    Attributes:
        drafter (`weakref.ref`): The drafter.
        buffers ([`Buffers`]): Their buffers.
        graphs ([`CapturedRounds`], *optional*): Graphs on them.
        addresses (`int`): As of [`addresses_of`], when they were captured.
    """

    drafter: weakref.ref
    buffers: Buffers
    graphs: CapturedRounds | None
    addresses: int


class StaticRunner(FlatRunner):
    """A target whose rounds have fixed shapes, and a drafter whose drafts are made in them.

    The prompt is processed as always; `enter` then takes over its cache and the drafter's context.

    Args: as of [`TargetRunner`].

    Raises:
        `ValueError`: If rows cannot be told apart.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not self._may_pack():
            raise ValueError(
                f"Static rounds need rows that can be told apart by their positions alone, and those of "
                f"{type(self._model).__name__} with these inputs cannot be. Leave out cache_implementation and "
                "compile."
            )
        self._round: StaticRound | None = None
        self._buffers: Buffers | None = None
        self._report: Report | None = None
        self._has_drafts = False

    def _take_over(self) -> None:
        """Not yet: rounds have buffers of their own, and take the cache when the drafter has read the prompt."""

    def enter(
        self, request: Request, state: Any, chooser: TokenChooser, stats: SpeculationStats, vocab_size: int,
        rows: list[int], anchor_ids: list[int],
    ) -> None:  # fmt: skip
        """Begin with rounds, behind each row's first new token.

        Args:
            request ([`Request`]): What is to be generated: its drafter, and how to speculate.
            state ([`DraftState`]): The drafter's context of the rows that go on.
            chooser ([`TokenChooser`]): Turns logits into tokens.
            stats ([`SpeculationStats`]): Counts rounds of each bucket, and host reads.
            vocab_size (`int`): Tokens that the target tells apart.
            rows (`list[int]`): Rows of the prompt that go on.
            anchor_ids (`list[int]`): Their last tokens.

        Raises:
            `ValueError`: If what was rejected could not be masked in this target.
        """
        if not self._is_flat:
            raise ValueError(
                f"Not every layer of {type(self._model).__name__} asks transformers' attention interface with a mask "
                "of transformers, so static rounds cannot mask what was rejected. Leave out cache_implementation and "
                "compile."
            )
        drafter, num_candidates = request.drafter, request.speculation.num_candidates
        self._drafter, self._stats = drafter, stats
        self._num_slots = drafter.config.num_slots
        self._width = 1 + self._num_slots
        num_columns = self._columns.most_columns + 2 * self._width
        self._most_columns = bucket_columns(max(num_columns, request.generation_config.max_cache_len or 0))
        self._num_rows = bucket_rows(len(rows))
        self._addresses = addresses_of(request)
        self._buffers, self._graphs = self._take_kept(state)
        compiles = request.speculation.compile
        self._round = StaticRound(self._model, drafter, chooser, num_candidates, vocab_size, compiles)
        self._options, self._held = None, list(chooser.processors)
        why = why_not_captured(request)
        if why is not None and request.device.type == "cuda":
            warnings.warn(f"Rounds are not captured in CUDA graphs: {why}.", stacklevel=2)
        if why is None:
            self._options = options_of(request, vocab_size)
            self._graphs = self._graphs or CapturedRounds(request.device)
            self._host = torch.empty(self._buffers.report.shape, dtype=torch.float64, pin_memory=True)
        self._num_candidates = min(num_candidates or drafter.num_outputs, drafter.num_outputs)
        if not chooser.do_sample:
            self._num_candidates = None
        self._load(state, rows, anchor_ids)

    def _take_kept(self, state: Any) -> tuple[Buffers, CapturedRounds | None]:
        """This target's buffers and graphs, which are nobody else's meanwhile, or new ones."""
        kept, rows, columns = _kept.pop(self._model, None), self._num_rows, self._most_columns
        if kept is not None and kept.drafter() is self._drafter:
            if kept.buffers.fits(self.cache, state, rows, columns):
                return kept.buffers, kept.graphs if kept.addresses == self._addresses else None
            if kept.buffers.made_for == shapes_of(self.cache, state):
                rows, columns = max(rows, kept.buffers.num_rows), max(columns, kept.buffers.num_columns)
        # The old ones go before the new are made.
        del kept
        return Buffers(self.cache, state, rows, columns, self._num_slots), None

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

    def run(self, draft_lens: list[int], goes_on: bool) -> tuple[Tensor, Tensor]:
        """One round.

        Args:
            draft_lens (`list[int]`): Drafts that are verified, of each row at work.
            goes_on (`bool`): Whether the next block is drafted.

        Returns:
            `tuple(torch.LongTensor, torch.LongTensor)`: Tokens `(rows, w)`, of which accepted drafts and one more
            stand, and how many drafts were accepted `(rows, 1)`, on the host.
        """
        self._settle_rows()
        self._tell(draft_lens)
        width = bucket_width(max(draft_lens) + 1, self._width)
        self._launch(width, goes_on)
        # A bucket may be wider than what is offered, and than what a text has room for.
        return self._report.tokens(max(draft_lens) + 1)

    def _settle_rows(self) -> None:
        """Take a smaller bucket where enough rows have ended."""
        num_rows = bucket_rows(len(self._places))
        if num_rows < self._num_rows:
            self._buffers.move(self._places, num_rows)
            self._num_rows, self._places, self._told = num_rows, list(range(len(self._places))), None

    def _tell(self, draft_lens: list[int]) -> None:
        """Say on the device how many drafts of each row are verified, and which rows have ended."""
        offered = [-1] * self._num_rows
        for place, count in zip(self._places, draft_lens, strict=True):
            offered[place] = count
        if offered != self._told:
            self._told = offered
            device = self._buffers.offered.device
            told = torch.tensor(offered, pin_memory=device.type == "cuda")
            self._buffers.offered[: self._num_rows].copy_(told, non_blocking=True)

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
            self._graphs.run((bucket, self._num_candidates, self._options), launch, self._held)
            self._stats.graphs += self._graphs.num_graphs - num_before
        self._has_drafts = drafts
        self._stats.note_bucket(str(bucket))
        has_confidence = self._drafter.confidence_head is not None
        self._report = Report(self._read(view.report), self._num_slots, has_confidence)
        self._report.keep(self._places)

    def _read(self, report: Tensor) -> Tensor:
        self._stats.host_reads += 1
        if self._options is None:
            return report.to("cpu", copy=True)
        host = self._host[: len(report)]
        host.copy_(report, non_blocking=True)
        torch.cuda.current_stream(report.device).synchronize()
        return host.clone()

    def take_features(self, num_tokens: int | None = None, rows: list[int] | None = None) -> None:
        """None: the drafter has read them."""

    def commit(self, num_rejected: list[int], lens: list[int], rows: list[int] | None = None) -> None:
        """Let go of rows that have ended; what was rejected is written over."""
        self._end = max(lens) + self._layout.shift
        if rows is None:
            return
        if self._buffers is None:
            self._columns.keep_rows(rows)
            return
        self._places = [self._places[row] for row in rows]
        self._report.keep(rows)

    def close(self) -> None:
        super().close()
        buffers, self._buffers = self._buffers, None
        if buffers is not None:
            _kept[self._model] = Kept(weakref.ref(self._drafter), buffers, self._graphs, self._addresses)


def release(model: nn.Module) -> None:
    """Let go of the buffers and graphs that static rounds of a target have left for the next call.

    Args:
        model (`torch.nn.Module`): The target.
    """
    _kept.pop(model, None)
