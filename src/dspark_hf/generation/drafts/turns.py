"""The drafter's context from one turn of a conversation to the next.

What a drafter has read is left at the target's cache when that is handed out. A later turn that goes on with the cache
finds it there, also in a deep copy, as long as nobody else has written to the cache. Where a cache was filled by
others there are no features of its tokens: the context then starts behind them, at the right position. Drafts are
fewer or worse for it, and the output is the same.
Shapes: B batch, C cache columns, T tokens of one piece.
"""

import copy
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from dspark_hf.generation.request import Request
from dspark_hf.generation.target.layout import PromptLayout, first_keys

from .context import PendingContext, align_left

_ATTRIBUTE = "dspark_context"
# Named, because torch's default device may be another.
_HOST = torch.device("cpu")


class LeftContext:
    """What a drafter has read of the tokens in a cache.

    Args:
        drafter (`weakref.ref`, *optional*): Whose context it is.
        state ([`DraftState`], *optional*): The context.
        is_read (`torch.BoolTensor` of shape `(batch, columns)`, *optional*): The cache columns in it.
        keys (`torch.Tensor` of shape `(batch, heads, columns, dim)`, *optional*): The cache's first keys. Whoever
            writes
            to the cache replaces them; whoever crops it makes a view of them.
    """

    def __init__(
        self,
        drafter: weakref.ref | None = None,
        state: Any = None,
        is_read: Tensor | None = None,
        keys: Tensor | None = None,
    ):
        self.drafter, self.state, self.is_read, self.keys = drafter, state, is_read, keys

    def __deepcopy__(self, memo: dict[int, Any]) -> "LeftContext":
        state, is_read, keys = (copy.deepcopy(value, memo) for value in (self.state, self.is_read, self.keys))
        return LeftContext(self.drafter, state, is_read, keys)

    def __reduce__(self) -> tuple:
        # Of use to this drafter object only: a cache is saved without.
        return LeftContext, ()

    def is_of(self, drafter: Any, cache: Cache) -> bool:
        """Whether it is the context of `drafter` for what `cache` holds now."""
        keys = first_keys(cache)
        if self.drafter is None or self.drafter() is not drafter or keys is None:
            return False
        if keys.is_inference() and not torch.is_inference_mode_enabled():
            # A context that was made in inference mode cannot be written to outside.
            return False
        return keys.shape[0] == self.keys.shape[0] and keys.data_ptr() == self.keys.data_ptr()


class DraftContext(PendingContext):
    """A drafter's context for the rows of one generation, from the earlier turns on.

    Args:
        drafter ([`DSparkModel`]): The drafter.
        cache (`Cache`): The target's cache.
        layout ([`PromptLayout`]): Where the prompt stands.
        mask (`torch.Tensor` of shape `(batch, columns)`, *optional*): The prompt's attention mask.
        is_left (`bool`): Whether the context is left at the cache in the end. Rows must then stay.
        ids (`torch.LongTensor` of shape `(batch, new columns)`, *optional*): The prompt's tokens that are not cached;
            None where embeddings were given.

    Raises:
        `ValueError`: If the drafter reads tokens, and there are none.
    """

    def __init__(
        self,
        drafter: Any,
        cache: Cache,
        layout: PromptLayout,
        mask: Tensor | None,
        is_left: bool,
        ids: Tensor | None = None,
    ):
        if ids is None and getattr(drafter, "reads_tokens", False):
            raise ValueError(
                f"{type(drafter).__name__} reads the prompt's tokens, and inputs_embeds take their place. Pass "
                "input_ids, or use a drafter that reads features alone, such as DSpark."
            )
        self._ids = ids
        self._cache = cache
        self.is_left = is_left
        shape = (layout.num_rows, layout.num_columns)
        self._mask = torch.ones(shape, dtype=torch.bool, device=_HOST) if mask is None else mask.bool().cpu().clone()
        # A row may be padding alone, as where the bos token pads and there is no prompt: one token of it is read.
        self._mask[~self._mask.any(1), -1] = True
        self._next_column = layout.num_cached
        self._is_read = torch.zeros(layout.num_rows, layout.num_cached, dtype=torch.bool, device=_HOST)
        left, state = vars(cache).pop(_ATTRIBUTE, None), None
        if layout.num_cached > 0 and left is not None and left.is_of(drafter, cache):
            state = left.state
            self._is_read = left.is_read[:, : layout.num_cached]
            state.crop(self._is_read.sum(1).tolist())
        super().__init__(drafter, layout.num_rows, state)
        self._state.expect(layout.num_columns - layout.num_cached)
        if layout.num_cached > 0:
            self._state.move_to(self._mask[:, : layout.num_cached].sum(1).tolist())

    @classmethod
    def of(cls, request: Request, layout: PromptLayout) -> "DraftContext":
        """The context of a request's drafter.

        Args:
            request ([`Request`]): What was asked for.
            layout ([`PromptLayout`]): Where its prompt stands.
        """
        # Embeddings take the place of ids.
        has_ids = request.model_kwargs.get("inputs_embeds") is None
        return cls(
            request.drafter,
            request.cache,
            layout,
            request.prompt_mask,
            is_left=request.returns_cache and request.has_draft_model,
            ids=request.input_ids[:, layout.num_cached - layout.shift :] if has_ids else None,
        )

    def read_prompt(self, pieces: Iterable[Tensor]) -> None:
        """Append the prompt's next tokens; rows get theirs without padding, on whichever side that stands.

        Args:
            pieces (`Iterable[torch.Tensor]` of shape `(batch, tokens, taps * hidden)`): Features, piece by piece.
        """
        for features in pieces:
            end = self._next_column + features.shape[1]
            mask = self._mask[:, self._next_column : end]  # [B, T]
            ids = mask.new_zeros(mask.shape, dtype=torch.int64) if self._ids is None else self._next_ids(mask.shape[1])
            self._next_column = end
            if mask.all():
                self.add(features, ids)
            elif mask.any():
                self.add(*align_left(features, ids, mask))

    def _next_ids(self, num_tokens: int) -> Tensor:
        begin = self._next_column - self._mask.shape[1] + self._ids.shape[1]
        return self._ids[:, begin : begin + num_tokens]

    def leave(self) -> None:
        """Leave the context at the cache, for a turn that goes on with it."""
        keys = first_keys(self._cache)
        if not self.is_left or keys is None:
            return
        state = self.state()
        is_read = torch.cat([self._is_read, self._mask[:, self._is_read.shape[1] :]], 1)
        num_new = self._cache.get_seq_length() - is_read.shape[1]
        counts = torch.tensor(state.context_lens, device=_HOST) - is_read.sum(1)
        is_read = torch.cat([is_read, torch.arange(num_new, device=_HOST) < counts.unsqueeze(1)], 1)
        setattr(self._cache, _ATTRIBUTE, LeftContext(weakref.ref(self._drafter), state, is_read, keys))
