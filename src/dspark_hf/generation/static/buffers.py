"""What static rounds read and write: tensors of fixed shapes, at addresses that stay as they are.

A row's token c stands in column c, prompt padding included. What a row rejected is written over by its next tokens,
and until then lies behind what any query sees; rows that have ended write to their first columns.
Shapes: R rows and C columns of a bucket, w tokens of a row's pass, G slots, k candidates, H heads, D head dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from dspark_hf.modeling.context import DraftState, FixedState
from dspark_hf.ops.candidates import Candidates

from .cache import FixedCache, FixedLayer

# Fewest columns of a bucket.
_LEAST_COLUMNS = 128


class Bucket(NamedTuple):
    """The shapes of a round.

    Attributes:
        rows (`int`): Rows.
        width (`int`): Tokens of each row that the target verifies, its anchor included; 0 where it has no part.
        columns (`int`): Columns that attention reads.
        drafts (`bool`): Whether the next block is drafted.
    """

    rows: int
    width: int
    columns: int
    drafts: bool

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}x{self.columns}{'+draft' if self.drafts else ''}"


def bucket_rows(num_rows: int) -> int:
    """The least power of two that holds `num_rows` rows."""
    return 1 << max(num_rows - 1, 0).bit_length()


def bucket_columns(num_columns: int) -> int:
    """The least power of two, 128 at least, that holds `num_columns` columns."""
    return max(bucket_rows(num_columns), _LEAST_COLUMNS)


def bucket_width(num_tokens: int, most: int) -> int:
    """The least of 1, 2, 4, ... and `most` that holds `num_tokens` tokens of a row."""
    return min(bucket_rows(num_tokens), most)


class View(NamedTuple):
    """The buffers as a bucket of so many rows and columns sees them.

    Attributes:
        cache ([`FixedCache`]): The target's keys and values.
        context ([`FixedState`]): The drafter's.
        visible (`torch.BoolTensor` of shape `(rows, columns)`): Columns that are no padding.
        block (`torch.LongTensor` of shape `(rows, 1 + slots)`): Each row's anchor, and the drafts behind it.
        lens (`torch.LongTensor` of shape `(rows,)`): Column of the anchor: so many tokens are cached.
        offered (`torch.LongTensor` of shape `(rows,)`): Drafts that are verified; -1 for a row that has ended.
        shift (`torch.LongTensor` of shape `(rows,)`): Position of a new token, less its column.
        last_position (`torch.LongTensor` of shape `(rows,)`): Highest position that the target is asked for.
        context_shift (`torch.LongTensor` of shape `(rows,)`): Tokens of the drafter's context, less those cached.
        candidates ([`Candidates`] of shape `(rows, slots, k)`, *optional*): What the drafts were drawn from.
        report (`torch.DoubleTensor` of shape `(rows, 2 + 4 * slots)`): What the host reads, see [`Report`].
    """

    cache: FixedCache
    context: FixedState
    visible: Tensor
    block: Tensor
    lens: Tensor
    offered: Tensor
    shift: Tensor
    last_position: Tensor
    context_shift: Tensor
    candidates: Candidates | None
    report: Tensor

    def changed(self) -> list[Tensor]:
        """What a round leaves changed, besides keys, values and context of its tokens, which it would write again."""
        drawn_from = [] if self.candidates is None else [self.candidates.ids, self.candidates.probs]
        return [self.block, self.lens, self.report, *drawn_from]


# Tensors with an entry for each row, moved when rows are.
_OF_ROWS = (
    "visible",
    "block",
    "lens",
    "offered",
    "shift",
    "last_position",
    "context_shift",
    "first_positions",
    "report",
)


class Buffers:
    """The tensors themselves, for at most so many rows and columns.

    Args:
        cache (`DynamicCache`): The cache that a prompt filled, of keys and values alone: its shapes are taken over.
        state ([`DraftState`]): The drafter's context of the prompt, likewise.
        num_rows, num_columns (`int`): Most rows and columns.
        num_slots (`int`): Slots of the drafter.
    """

    def __init__(self, cache: Cache, state: DraftState, num_rows: int, num_columns: int, num_slots: int):
        self.num_rows, self.num_columns, self.num_slots = num_rows, num_columns, num_slots
        self.made_for = shapes_of(cache, state)
        self._layers = list(cache.layers)
        first = next(layer.keys for layer in cache.layers if layer.is_initialized)
        device = first.device

        def buffer(like: Tensor) -> Tensor:
            # Zeros: a masked column must not hold inf or nan, which would spoil the sum over values.
            return like.new_zeros(num_rows, like.shape[1], num_columns, like.shape[3])

        self._kv = [(buffer(layer.keys), buffer(layer.values)) if _holds(layer) else None for layer in cache.layers]
        self._windows = [
            layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None for layer in cache.layers
        ]
        # Layers that share another's keys are asked for nothing, and keep nothing of this prompt.
        self._layers = [None if kept else layer for kept, layer in zip(self._kv, cache.layers, strict=True)]
        self._context, self._kind = [buffer(states) for states in state.buffers], type(state)
        ints = {"dtype": torch.int64, "device": device}
        self.visible = torch.ones(num_rows, num_columns, dtype=torch.bool, device=device)
        self.block = torch.zeros(num_rows, 1 + num_slots, **ints)
        self.lens, self.offered, self.shift, self.last_position, self.context_shift, self.first_positions = (
            torch.zeros(num_rows, **ints) for _ in range(6)
        )
        self.report = torch.zeros(num_rows, 2 + 4 * num_slots, dtype=torch.float64, device=device)
        self._candidates: dict[int, Candidates] = {}
        self._views: dict[tuple[int, int, int | None], View] = {}

    def view(self, num_rows: int, num_columns: int, num_candidates: int | None = None) -> View:
        """The first rows and columns; always the same object.

        Args:
            num_rows, num_columns (`int`): How many.
            num_candidates (`int`, *optional*): Candidates of a slot where tokens are drawn.
        """
        key = num_rows, num_columns, num_candidates
        if key not in self._views:
            layers = [
                layer if kv is None else FixedLayer(*(part[:num_rows, :, :num_columns] for part in kv), window)
                for layer, kv, window in zip(self._layers, self._kv, self._windows, strict=True)
            ]
            context = self._kind.fixed(
                [part[:num_rows, :, :num_columns] for part in self._context], self.first_positions[:num_rows]
            )
            self._views[key] = View(
                FixedCache(layers=layers),
                context,
                self.visible[:num_rows, :num_columns],
                *(getattr(self, name)[:num_rows] for name in View._fields[3:9]),
                None if num_candidates is None else self._drawn_from(num_candidates)[:num_rows],
                self.report[:num_rows],
            )
        return self._views[key]

    def _drawn_from(self, num_candidates: int) -> Candidates:
        if num_candidates not in self._candidates:
            ids = self.block.new_zeros(self.num_rows, self.num_slots, num_candidates)
            self._candidates[num_candidates] = Candidates(ids, torch.zeros(ids.shape, device=ids.device))
        return self._candidates[num_candidates]

    def fits(self, cache: Cache, state: DraftState, num_rows: int, num_columns: int, num_slots: int) -> bool:
        """Whether these buffers hold a prompt's cache and context.

        Args:
            cache (`Cache`): The cache.
            state ([`DraftState`]): The context.
            num_rows, num_columns (`int`): Rows and columns to hold.
            num_slots (`int`): Slots of the drafter.
        """
        # What was made in inference mode cannot be written to outside.
        is_usable = torch.is_inference_mode_enabled() or not self.lens.is_inference()
        is_large = self.num_rows >= num_rows and self.num_columns >= num_columns and self.num_slots == num_slots
        return is_usable and is_large and self.made_for == shapes_of(cache, state)

    def load(self, cache: Cache, state: DraftState, num_columns: int, rows: list[int], num_rows: int) -> None:
        """Take over what a prompt left.

        Args:
            cache (`DynamicCache`): The target's keys and values, of all rows.
            state ([`DraftState`]): The drafter's context, of the rows that go on.
            num_columns (`int`): Columns of the prompt.
            rows (`list[int]`): Rows of the cache that go on.
            num_rows (`int`): Rows of the bucket; those past `rows` are as if they had ended.
        """
        count = len(rows)
        for kv, layer in zip(self._kv, cache.layers, strict=True):
            if kv is not None:
                index = torch.tensor(rows, device=layer.keys.device)
                first = num_columns - layer.keys.shape[2]
                for buffer, states in zip(kv, (layer.keys, layer.values), strict=True):
                    buffer[:num_rows].zero_()
                    buffer[:count, :, first:num_columns] = states.index_select(0, index)
        for buffer, held in zip(self._context, state.buffers, strict=True):
            buffer[:num_rows].zero_()
            state.copy_held(held, buffer)
        self.visible[:num_rows] = True
        self.lens[:num_rows] = 0
        self.offered[:num_rows] = -1

    def tell(self, drafts: Tensor) -> None:
        """Put drafts of the host in the place of the drafter's.

        Args:
            drafts (`torch.LongTensor` of shape `(rows, slots)`): They; -1 where there is none.
        """
        num_rows = len(drafts)
        block = self.block[:num_rows, 1:]
        is_told, told = drafts >= 0, drafts.clamp_min(0)
        block.copy_(torch.where(is_told, told, block))
        for num_candidates, drawn in self._candidates.items():
            rows = drawn[:num_rows]
            certain = Candidates.certain(told).pad(self.num_slots, num_candidates).where(is_told.unsqueeze(-1), rows)
            rows.ids.copy_(certain.ids)
            rows.probs.copy_(certain.probs)

    def move(self, places: list[int], num_rows: int) -> None:
        """Bring the rows at `places` to the front of a bucket of `num_rows`."""
        # Rows past the ones that go on repeat the last, and count as ended.
        index = torch.tensor([*places, *places[-1:] * (num_rows - len(places))], device=self.lens.device)
        for tensor in self.tensors():
            tensor[:num_rows] = tensor.index_select(0, index.to(tensor.device))
        self.offered[len(places) : num_rows] = -1

    def tensors(self) -> list[Tensor]:
        """All buffers."""
        kept = [part for kv in self._kv if kv is not None for part in kv]
        drawn = [part for one in self._candidates.values() for part in (one.ids, one.probs)]
        return [*(getattr(self, name) for name in _OF_ROWS), *drawn, *kept, *self._context]


def num_bytes(cache: Cache, state: DraftState, num_rows: int, num_columns: int) -> int:
    """Bytes that the buffers of keys, values and context take, as of [`Buffers`].

    Args:
        cache, state, num_rows, num_columns: As there.
    """
    per_column = sum(heads * dim * dtype.itemsize for heads, dim, dtype, _ in shapes_of(cache, state))
    return num_rows * num_columns * per_column


def _holds(layer: CacheLayerMixin) -> bool:
    return layer.is_initialized and layer.keys is not None


def shapes_of(cache: Cache, state: DraftState) -> tuple:
    """What buffers for a `cache` and a context, `state`, are made by, besides the numbers of rows and columns."""
    tensors = [part for layer in cache.layers if _holds(layer) for part in (layer.keys, layer.values)]
    tensors += state.buffers
    return tuple((tensor.shape[1], tensor.shape[3], tensor.dtype, tensor.device) for tensor in tensors)
