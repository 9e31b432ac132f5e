"""The target in the decoding loop, with the rows of a batch packed into one sequence.

Linear layers, experts and the output head see exactly the tokens that are verified, whatever the other rows are
offered; only attention knows of rows. Source: DSpark, section 4 (https://arxiv.org/abs/2607.05147).
Shapes: B batch, w tokens of the row with most, N tokens of all rows, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from dspark_hf.generation.rollback.compaction import is_compactable
from dspark_hf.modeling.cache_name import CACHE_NAME

from .packing import Packing
from .row_attention import RowPass, Trial, attention_of, can_swap
from .row_cache import RowCache
from .runner import TargetRunner


class FlatRunner(TargetRunner):
    """A [`TargetRunner`] whose rounds are packed, where the target can do it; otherwise it is no different.

    The prompt is processed as always, and shows whether the target's attention can be packed. Its cache is then used
    up, so this is not for caches that someone else gets.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._packing: Packing | None = None
        self._visible: Tensor | None = None
        self._trial: Trial | None = None
        self._is_flat = False

    @property
    def takes_uneven_rows(self) -> bool:
        return self._is_flat or super().takes_uneven_rows

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, chunk_size: int | None = None) -> Iterator[Tensor]:
        self._trial = Trial() if self._may_pack() else None
        yield from super().prefill(input_ids, chunk_size)
        if self._trial is not None and self._trial.allows_packing(self.cache):
            self._is_flat = True
            self._take_over()

    def _take_over(self) -> None:
        """Go on with the prompt's keys and values in a cache whose rows grow apart."""
        num_columns, mask = self._layout.num_columns, self._columns.mask
        self._visible = None if mask is None else mask[:, :num_columns].bool()
        # A draft may stand behind the last token, as in the buffer of ids.
        self.cache = RowCache(self.cache, num_columns, self._columns.most_columns + 1)
        self._kwargs[CACHE_NAME] = self.cache

    def _prefill_pass(self, ids: Tensor, begin: int, stop: int) -> Tensor:
        if self._trial is None:
            return super()._prefill_pass(ids, begin, stop)
        with attention_of(self._model, self._trial):
            return super()._prefill_pass(ids, begin, stop)

    def _may_pack(self) -> bool:
        positions = self._columns.position_ids
        return (
            len(self._columns.others) == 1
            and positions is not None
            and positions.ndim == 2
            and self.can_drop_rows
            and is_compactable(self.cache)
            and not self._reads_columns
            and can_swap(self._model)
        )

    @torch.no_grad()
    def verify(self, ids: Tensor, lens: list[int], draft_lens: list[int]) -> Tensor:
        if not self._is_flat:
            return super().verify(ids, lens, draft_lens)
        shift = self._layout.shift
        starts, counts = [length - 1 + shift for length in lens], [count + 1 for count in draft_lens]
        packing = self._packing = Packing(starts, counts, self._visible)
        self._columns.reach(packing.end)
        self.cache.begin(packing)
        num_tokens, kwargs = packing.num_tokens, {"position_ids": packing.at(self._columns.position_ids)}
        with self._in_rows(packing):
            logits = self._forward(packing.at(ids, shift), kwargs, num_tokens, next_sequence_length=num_tokens)
        return packing.unpack(logits)

    def _in_rows(self, packing: Packing) -> AbstractContextManager:
        if len(packing.counts) == packing.num_tokens == 1 and self._visible is None:
            # Its columns are all that the token sees, as in plain `generate()`.
            return nullcontext()
        return attention_of(self._model, RowPass(packing))

    def _of_rows(self, features: Tensor, num_tokens: int | None, rows: list[int] | None) -> Tensor:
        if not self._is_flat:
            return super()._of_rows(features, num_tokens, rows)
        return self._packing.unpack(features, num_tokens, rows)

    def commit(self, num_rejected: list[int], lens: list[int], rows: list[int] | None = None) -> None:
        if not self._is_flat:
            super().commit(num_rejected, lens, rows)
        elif rows is not None:
            # What was rejected needs no taking out: it is written over.
            self.cache.select(rows)
            self._visible = None if self._visible is None else self._visible[rows]
            self._columns.keep_rows(rows)
