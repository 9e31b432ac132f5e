"""Where the tokens of one packed pass stand: rows of different counts, one behind the other in a single sequence.

Shapes: B rows, w tokens of the row with most, N tokens of all rows.
"""

from functools import cached_property

import torch
from torch import Tensor

from dspark_hf.ops.row_attention import Rows

# Named, because torch's default device may be another.
_HOST = torch.device("cpu")


class Packing:
    """Layout of one forward pass over `(1, N)` tokens, N the sum of the rows' counts.

    Args:
        starts (`list[int]`): Column of each row's first token.
        counts (`list[int]`): Tokens of each row, at least one.
        visible (`torch.BoolTensor` of shape `(batch, columns)`, *optional*):
            Which of the first columns hold tokens; all, if not given. Later columns always do.

    Attributes:
        width (`int`): Tokens of the row with most, w.
        num_tokens (`int`): Tokens of all rows, N.
        end (`int`): First column that no row reaches.
    """

    def __init__(self, starts: list[int], counts: list[int], visible: Tensor | None = None):
        self.starts, self.counts, self.visible = starts, counts, visible
        self.width, self.num_tokens = max(counts), sum(counts)
        self.end = max(start + count for start, count in zip(starts, counts, strict=True))
        self.is_even = min(counts) == self.width
        # Made when they are asked for: most rounds of a single row do without.
        self._indices: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._places: dict[tuple, Tensor] = {}
        self._rows: dict[torch.device, Rows] = {}

    def at(self, values: Tensor, shift: int = 0) -> Tensor:
        """What stands in the tokens' columns, `(1, N, ...)`.

        Args:
            values (`torch.Tensor` of shape `(batch, columns, ...)`): Values of all columns.
            shift (`int`, *optional*, defaults to 0): The first of these.
        """
        if len(self.counts) == 1:
            return values.narrow(1, self.starts[0] - shift, self.num_tokens)
        rows, columns = self.cells(values.device)
        return values[rows, columns - shift].unsqueeze(0)

    def cells(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column of each token on a `device`, int64 `(N,)` each."""
        return self._on(device)[:2]

    def columns(self, device: torch.device) -> Tensor:
        """Columns `(batch, w)` of the rows' tokens on a `device`; past a row's count they go on, and mean nothing."""
        return torch.tensor(self.starts, device=device).unsqueeze(1) + torch.arange(self.width, device=device)

    def rows(self, device: torch.device) -> Rows:
        """Where the rows stand, on a `device`, as attention over them takes it."""
        if device not in self._rows:
            numbers = [self.starts, self.counts, self._offsets.tolist()]
            numbers = torch.tensor(numbers, dtype=torch.int32).to(device, non_blocking=True)
            visible = None if self.visible is None else self.visible.to(device)
            self._rows[device] = Rows(*numbers, self.width, visible)
        return self._rows[device]

    def pack(self, values: Tensor) -> Tensor:
        """`(1, N, ...)` of `values` `(batch, w, ...)`."""
        values = values.flatten(0, 1)
        return (values if self.is_even else values.index_select(0, self._on(values.device)[2])).unsqueeze(0)

    def unpack(self, values: Tensor, num_tokens: int | None = None, rows: list[int] | None = None) -> Tensor:
        """`(batch, num_tokens, ...)` of `(1, N, ...)`; past a row's count its last token is repeated.

        Args:
            values (`torch.Tensor` of shape `(1, N, ...)`): One entry per token.
            num_tokens (`int`, *optional*): First tokens of each row to take; w, if not given.
            rows (`list[int]`, *optional*): Rows to take; all, if not given.
        """
        num_tokens = self.width if num_tokens is None else num_tokens
        num_rows = len(self.counts) if rows is None else len(rows)
        if self.is_even and rows is None:
            return values.view(num_rows, self.width, *values.shape[2:])[:, :num_tokens]
        key = (values.device, num_tokens, None if rows is None else tuple(rows))
        if key not in self._places:
            places = self._find(num_tokens, slice(None) if rows is None else rows)
            self._places[key] = places.flatten().to(values.device, non_blocking=True)
        return values[0].index_select(0, self._places[key]).view(num_rows, num_tokens, *values.shape[2:])

    def order(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each row's tokens stand among N, `(batch, w)`, and each of N among the rows' tokens, `(N,)`, on a
        `device`.

        Past a row's count its last token is repeated.
        """
        return self._find(self.width).to(device, non_blocking=True), self._on(device)[2]

    def _find(self, num_tokens: int, rows: slice | list[int] = slice(None)) -> Tensor:
        """Where the rows' first tokens stand among N, `(rows, num_tokens)`; past a row's count, its last one."""
        last = torch.tensor(self.counts, device=_HOST)[rows].unsqueeze(1) - 1
        return self._offsets[rows].unsqueeze(1) + torch.arange(num_tokens, device=_HOST).minimum(last)

    @cached_property
    def _offsets(self) -> Tensor:
        """Place of each row's first token among N."""
        counts = torch.tensor(self.counts, device=_HOST)
        return counts.cumsum(0) - counts

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._indices:
            self._indices[device] = tuple(index.to(device, non_blocking=True) for index in self._on_host)
        return self._indices[device]

    @cached_property
    def _on_host(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column, and place among `(batch, w)`, of each token."""
        counts = torch.tensor(self.counts, device=_HOST)
        rows = torch.arange(len(self.counts), device=_HOST).repeat_interleave(counts, output_size=self.num_tokens)
        steps = torch.arange(self.num_tokens, device=_HOST) - self._offsets[rows]
        return rows, torch.tensor(self.starts, device=_HOST)[rows] + steps, rows * self.width + steps
