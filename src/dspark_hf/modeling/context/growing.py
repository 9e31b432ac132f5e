"""Contexts that grow: of a training pass, and of a generation.

Shapes: B batch, H key/value heads, C context tokens, T new tokens, D head dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark_hf.ops.blocks import FULL_VIEW, LayerView

from .fixed import FixedState
from .masks import block_mask

# Columns that are made beyond those needed, at least.
_MORE_COLUMNS = 256
# Rows that are made beyond those needed where rows join, as a share of them.
_MORE_ROWS = 0.25


class TrainingContext:
    """Context of one training pass. `update` has no side effect, so gradient checkpointing may call it twice.

    Args:
        key_values (`list[tuple[torch.Tensor, torch.Tensor]]`): Per layer, keys and values
            `(batch, heads, context, dim)`.
    """

    def __init__(self, key_values: list[tuple[Tensor, Tensor]]):
        self.key_values = key_values

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """A layer's keys and values: those of the context, then the given.

        Args:
            keys, values (`torch.Tensor` of shape `(batch, heads, tokens, dim)`): Those of the blocks.
            layer_idx (`int`): The layer, from 0.
            args, kwargs: What stock layers pass, too; not read.

        Returns:
            Two `torch.Tensor` of shape `(batch, heads, context + tokens, dim)`.
        """
        context_keys, context_values = self.key_values[layer_idx]
        return torch.cat([context_keys, keys], 2), torch.cat([context_values, values], 2)


class DraftState:
    """Context of one generation: preallocated buffers in which each row has its own length.

    Rows start at column 0 and grow to the right. Columns at or past a row's length hold leftovers that the next write
    replaces, so dropping context is only a matter of lengths, and a block needs no copy of what stands before it. So
    do rows of the buffers behind the last one, where rows have left or may join.

    Args:
        batch_size (`int`): Number of rows.
        num_layers (`int`): Number of draft layers.
        window (`int`, *optional*): How many of a row's last tokens are kept, where blocks see no others; all, if not
            given.
    """

    def __init__(self, batch_size: int, num_layers: int, window: int | None = None):
        self._window = window
        # Tokens read of each row; the first `_dropped` of them are no longer held.
        self.context_lens: list[int] = [0] * batch_size
        self._dropped: list[int] = [0] * batch_size
        # Position of each row's first token: not 0 where the context lacks what stands at the start of a text.
        self._first_positions: list[int] = [0] * batch_size
        self._num_expected = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    @property
    def held_lens(self) -> list[int]:
        """Tokens that each row's columns hold."""
        return [length - count for length, count in zip(self.context_lens, self._dropped, strict=True)]

    def starts(self, device: torch.device) -> Tensor:
        """Column of each row's next token, int64 `(batch,)`, on the `device`."""
        return torch.tensor(self.held_lens, device=device)

    @property
    def is_uniform(self) -> bool:
        """Whether all rows hold as many tokens."""
        lens = self.held_lens
        return min(lens) == max(lens)

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Positions of each row's next `num_tokens` tokens, from 0, int64 on the `device`.

        Returns:
            `torch.LongTensor` of shape `(batch, num_tokens)`, or `(1, num_tokens)` when they are the same in all rows.
        """
        starts = [length + first for length, first in zip(self.context_lens, self._first_positions, strict=True)]
        steps = torch.arange(num_tokens, device=device)
        if min(starts) == max(starts):
            return (steps + starts[0]).unsqueeze(0)
        return torch.tensor(starts, device=device).unsqueeze(1) + steps

    def move_to(self, positions: Sequence[int]) -> None:
        """Let each row's next token stand at its one of `positions`, because the context lacks tokens before it."""
        self._first_positions = [
            int(position) - length for position, length in zip(positions, self.context_lens, strict=True)
        ]

    def expect(self, num_tokens: int) -> None:
        """Make room for `num_tokens` more tokens of each row with the next write, instead of growing towards them."""
        # What leaves a window makes room for what enters it.
        self._num_expected = max(self.context_lens) + num_tokens if self._window is None else 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return any(buffer is None for buffer in self._keys)

    def reserve(self, num_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        """Make room for `num_tokens` more tokens of each row now.

        Returns:
            `tuple[list[torch.Tensor], list[torch.Tensor]]`: The buffers of keys and of values of each layer,
            `(batch, heads, columns, dim)`; something must have been written before.
        """
        num_columns = max(max(self.held_lens) + num_tokens, self._num_expected)
        for buffers in (self._keys, self._values):
            buffers[:] = [self._reserve(buffer, buffer, num_columns) for buffer in buffers]
        num_rows = len(self.context_lens)
        return [buffer[:num_rows] for buffer in self._keys], [buffer[:num_rows] for buffer in self._values]

    def block_mask(self, num_tokens: int, device: torch.device, view: LayerView = FULL_VIEW) -> Tensor | None:
        """Which columns a block may see.

        Args:
            num_tokens (`int`): Tokens of the block.
            device (`torch.device`): Where the mask is wanted.
            view ([`LayerView`], *optional*): What the layer sees: a window, or only the inputs before; all, if not
                given.

        Returns:
            `torch.BoolTensor` of shape `(batch, 1, 1 or num_tokens, columns)`; None where the block may see all.
        """
        num_columns = max(self.held_lens) + num_tokens
        if view.window is not None and view.window >= num_columns - (num_tokens if view.is_anchored else 0):
            view = view._replace(window=None, is_anchored=False)
        if self.is_uniform and view == FULL_VIEW:
            return None
        lens = torch.tensor(self.held_lens[:1] if self.is_uniform else self.held_lens, device=device)
        return block_mask(lens.unsqueeze(1) + torch.arange(num_tokens, device=device), num_columns, view)

    @property
    def buffers(self) -> list[Tensor]:
        """All buffers `(batch, heads, columns, dim)`, of a context that is not empty."""
        return [buffer[: len(self.context_lens)] for buffers in self._buffers() for buffer in buffers]

    @classmethod
    def fixed(cls, buffers: list[Tensor], first_positions: Tensor) -> FixedState:
        """A context of this kind in buffers that stay where they are.

        Args:
            buffers (`list[torch.Tensor]` of shape `(rows, heads, columns, dim)`): They, in the order of `buffers`.
            first_positions (`torch.LongTensor` of shape `(rows,)`): Position of each row's first token.
        """
        num_layers = len(buffers) // 2
        return FixedState(list(zip(buffers[:num_layers], buffers[num_layers:], strict=True)), first_positions)

    @property
    def first_positions(self) -> list[int]:
        """Position of each row's first token."""
        return list(self._first_positions)

    def copy_held(self, held: Tensor, buffer: Tensor) -> None:
        """Copy what `held`, one of the buffers, holds of each row into another, token i into column i.

        Args:
            held (`torch.Tensor` of shape `(batch, heads, columns, dim)`): The buffer.
            buffer (`torch.Tensor` of shape `(rows, heads, columns, dim)`): The other one, of as many rows or more.
        """
        if not any(self._dropped):
            width = max(self.held_lens)
            buffer[: len(held), :, :width] = held[:, :, :width]
            return
        for row, (start, count) in enumerate(zip(self._dropped, self.held_lens, strict=True)):
            buffer[row, :, start : start + count] = held[row, :, :count]

    def advance(self, counts: Sequence[int]) -> None:
        """Keep the first `counts[row]` tokens of the latest `update`."""
        self.context_lens = [length + int(count) for length, count in zip(self.context_lens, counts, strict=True)]
        if self._window is not None and max(self.held_lens) > self._window:
            self._drop_before_window()

    def _drop_before_window(self) -> None:
        """Move each row's window to the front, over what stands before it."""
        too_many = [max(length - self._window, 0) for length in self.held_lens]
        for buffer in (*self._keys, *self._values):
            starts = torch.tensor(too_many, device=buffer.device).unsqueeze(1)
            columns = starts + torch.arange(self._window, device=buffer.device)  # [B, window]
            rows = torch.arange(len(too_many), device=buffer.device).unsqueeze(1)
            buffer[: len(too_many), :, : self._window] = buffer[rows, :, columns].transpose(1, 2)
        self._dropped = [count + more for count, more in zip(self._dropped, too_many, strict=True)]

    def crop(self, lengths: Sequence[int]) -> None:
        """Shorten each row's context to `lengths[row]` tokens.

        Raises:
            `ValueError`: If a length is negative or longer than the row.
        """
        lengths = [int(length) for length in lengths]
        if len(lengths) != len(self.context_lens) or any(
            not 0 <= new <= old for new, old in zip(lengths, self.context_lens, strict=True)
        ):
            raise ValueError(
                f"Cannot crop a context of lengths {self.context_lens} to {lengths}: give one length per row, "
                "from 0 to the row's present length."
            )
        self.context_lens = lengths
        self._dropped = [min(count, length) for count, length in zip(self._dropped, lengths, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these `rows`, numbers from 0, in this order.

        Little is copied where most stay where they are and others come from behind them.
        """
        moves = [(place, row) for place, row in enumerate(rows) if place != row]
        is_in_place = all(row >= len(rows) for _, row in moves)
        for buffers in self._buffers():
            for layer, buffer in enumerate(buffers):
                if buffer is None:
                    continue
                if is_in_place:
                    for place, row in moves:
                        buffer[place] = buffer[row]
                else:
                    buffers[layer] = buffer.index_select(0, torch.tensor(list(rows), device=buffer.device))
        self.context_lens = [self.context_lens[row] for row in rows]
        self._dropped = [self._dropped[row] for row in rows]
        self._first_positions = [self._first_positions[row] for row in rows]

    def join(self, other: "DraftState") -> None:
        """Take in the rows of another state of the same drafter, behind its own.

        Args:
            other ([`DraftState`]): It; not to be used any more.
        """
        num_own, num_rows = len(self.context_lens), len(self.context_lens) + len(other.context_lens)
        num_held = max(*self.held_lens, *other.held_lens)
        for own, others in zip(self._buffers(), other._buffers(), strict=True):
            for layer, pair in enumerate(zip(own, others, strict=True)):
                known = next((buffer for buffer in pair if buffer is not None), None)
                if known is None:
                    continue
                mine, theirs = pair
                if mine is None or not self._has_room(mine, num_rows, num_held):
                    spare = int(num_rows * _MORE_ROWS)
                    shape = (num_rows + spare, known.shape[1], num_held + _MORE_COLUMNS, known.shape[3])
                    own[layer] = known.new_zeros(shape)
                    _copy_rows(mine, own[layer], 0, num_own, num_held)
                _copy_rows(theirs, own[layer], num_own, num_rows - num_own, num_held)
        self.context_lens = self.context_lens + other.context_lens
        self._dropped = self._dropped + other._dropped
        self._first_positions = self._first_positions + other._first_positions

    @staticmethod
    def _has_room(buffer: Tensor, num_rows: int, num_columns: int) -> bool:
        """Whether a buffer takes so many rows and columns; not where many or long rows have left it since."""
        rows, columns = buffer.shape[0], buffer.shape[2]
        is_enough = rows >= num_rows and columns >= num_columns
        return is_enough and rows <= 4 * num_rows and columns <= 2 * num_columns + 2 * _MORE_COLUMNS

    def _buffers(self) -> tuple[list[Tensor | None], ...]:
        """What holds columns of rows, a list a kind."""
        return self._keys, self._values

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values behind each row's context, without counting them.

        Args:
            keys, values (`torch.Tensor` of shape `(batch, heads, tokens, dim)`): Those of the next tokens.
            layer_idx (`int`): The layer, from 0.
            args, kwargs: What stock layers pass, too; not read.

        Returns:
            Two `torch.Tensor` of shape `(batch, heads, columns, dim)`: context and tokens together.
        """
        return (
            self._write(self._keys, keys, layer_idx),
            self._write(self._values, values, layer_idx),
        )

    def _write(self, buffers: list[Tensor | None], new: Tensor, layer_idx: int) -> Tensor:
        num_rows, num_tokens = new.shape[0], new.shape[2]
        end = max(self.held_lens) + num_tokens
        buffers[layer_idx] = self._reserve(buffers[layer_idx], new, max(end, self._num_expected))
        buffer = buffers[layer_idx][:num_rows]
        if self.is_uniform:
            buffer[:, :, end - num_tokens : end] = new
        else:
            ends = torch.tensor(self.held_lens, device=new.device).unsqueeze(1)
            columns = ends + torch.arange(num_tokens, device=new.device)  # [B, T]
            rows = torch.arange(num_rows, device=new.device).unsqueeze(1)
            buffer[rows, :, columns] = new.transpose(1, 2).to(buffer.dtype)
        return buffer[:, :, :end]

    @staticmethod
    def _reserve(buffer: Tensor | None, new: Tensor, num_columns: int) -> Tensor:
        if buffer is not None and buffer.shape[2] >= num_columns:
            return buffer
        _, num_heads, _, head_dim = new.shape
        batch_size = new.shape[0] if buffer is None else buffer.shape[0]
        # Growing by a share keeps its cost constant per token; a first guess need not be generous.
        num_more = _MORE_COLUMNS if buffer is None else max(num_columns // 4, _MORE_COLUMNS)
        grown = new.new_zeros(batch_size, num_heads, num_columns + num_more, head_dim)
        if buffer is not None:
            grown[:, :, : buffer.shape[2]] = buffer
        return grown


def _copy_rows(source: Tensor | None, target: Tensor, first: int, num_rows: int, num_columns: int) -> None:
    """Copy the first rows of a buffer `(rows, heads, columns, dim)` behind the `first` ones of another."""
    if source is not None:
        columns = min(num_columns, source.shape[2])
        target[first : first + num_rows, :, :columns] = source[:num_rows, :, :columns]
