"""Attention of packed passes: queries are sorted into their rows, and everything else stays the target's own.

The functions are registered in transformers' attention and mask interfaces under names of their own, which a target's
config carries only during our passes. Any other pass that meets them, such as one of another thread, is handed to the
function that the target had before.
Shapes: B rows, w tokens of the row with most, N tokens of all rows, Q query heads, C columns, D head dim.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dspark_hf.modeling.compiling import is_compiled
from dspark_hf.ops.blocks import LayerView
from dspark_hf.ops.dispatch import kernel_for
from dspark_hf.ops.row_attention import Rows, even_rows, has_kernel, row_attention

from .packing import Packing

_PREFIX = "dspark_rows_"
_BASES = ("sdpa", "eager")
_pass: ContextVar["Trial | RowPass | None"] = ContextVar("dspark_rows_pass", default=None)


class _Traced:
    what: "Trial | RowPass | None" = None


# torch.compile cannot trace a ContextVar. Only passes that hold the lock below run compiled code.
_traced = _Traced()
# A config belongs to all threads that use its model.
_swap = threading.RLock()


def can_swap(model: PreTrainedModel) -> bool:
    """Whether a target `model` says that it takes attention functions from outside, and has one to stand in for."""
    config = model.config.get_text_config(decoder=True)
    # Another thread may be in the middle of a pass.
    base = config._attn_implementation.removeprefix(_PREFIX)
    if not getattr(model, "_supports_attention_backend", False) or base not in _BASES:
        return False
    layers = [module for module in model.modules() if hasattr(module, "layer_idx")]
    is_named = base != "eager" or all(
        _eager_attention(module) is not None for module in layers if type(module).__name__.endswith("Attention")
    )
    # Compiled code holds the function that it was traced with.
    return is_named and not any(map(is_compiled, model.modules()))


@contextmanager
def attention_of(model: PreTrainedModel, what: "Trial | RowPass") -> Iterator[None]:
    """Run passes of a target in this block through the functions of this file.

    Args:
        model (`PreTrainedModel`): The target.
        what ([`Trial`] or a pass of this file): What the functions then serve.
    """
    config = model.config.get_text_config(decoder=True)
    with _swap:
        before = config._attn_implementation
        token, _traced.what = _pass.set(what), what
        config._attn_implementation = f"{_PREFIX}{before.removeprefix(_PREFIX)}"
        try:
            yield
        finally:
            config._attn_implementation = before
            _pass.reset(token)
            _traced.what = None


class Trial:
    """Watches a pass that is not packed, to learn whether the target's attention really goes through this file."""

    def __init__(self):
        self._layer_ids: set[int] = set()
        self._num_masks = 0
        self._masks: list[weakref.ref] = []
        self._is_plain = True

    def note_attention(self, module: nn.Module, mask: Tensor | None, kwargs: dict) -> None:
        """Note that a layer asked the interface.

        Args:
            module (`nn.Module`): The layer's attention.
            mask (`torch.Tensor` of shape `(batch, 1, tokens, columns)` or `None`): The mask that it has.
            kwargs (`dict`): What else came along.
        """
        self._layer_ids.add(getattr(module, "layer_idx", None))
        # Biases that depend on cache columns are laid out for the whole batch, whether they come along or in the mask.
        self._is_plain &= kwargs.get("position_bias") is None and (mask is None or self._is_known(mask))

    def _is_known(self, mask: Tensor) -> bool:
        """Whether a mask is what the interface made, or a copy on another device."""
        made = [other for ref in self._masks if (other := ref()) is not None]
        return any(mask is other or (mask.device != other.device and mask.shape == other.shape) for other in made)

    def note_mask(self, mask: Tensor | None, use_vmap: bool) -> None:
        """Note a mask that the interface made.

        Args:
            mask (`torch.Tensor` of shape `(batch, 1, tokens, columns)` or `None`): The mask.
            use_vmap (`bool`): Whether its function had to be mapped.
        """
        self._num_masks += 1
        if mask is not None:
            self._masks.append(weakref.ref(mask))
        # Mask functions that must be mapped may read tensors by cache column.
        self._is_plain &= not use_vmap

    def allows_packing(self, cache: Cache) -> bool:
        """Whether every layer of the `cache` was seen, and nothing that depends on more than row and column."""
        layer_ids = {index for index, layer in enumerate(cache.layers) if layer.is_initialized}
        return self._is_plain and self._num_masks > 0 and layer_ids <= self._layer_ids


class RowPass:
    """A packed pass.

    Args:
        packing ([`Packing`]): Where its tokens stand.
    """

    def __init__(self, packing: Packing):
        self.packing = packing
        self._grouped: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        # What each mask says, where it can be said in words; with the first of its columns.
        self._views: dict[int, tuple[Tensor, LayerView, int]] = {}

    def mask(
        self, mask_function: Callable, first: int, length: int, dtype: torch.dtype, device, window: int | None = None
    ) -> Tensor:
        """Additive mask of some columns, for [`RowPass.sdpa`] and [`RowPass.eager`].

        Args:
            mask_function (`Callable`): That of transformers: of rows, heads, columns of queries and columns of keys.
            first, length (`int`): The first column, and how many.
            dtype (`torch.dtype`): That of the scores.
            device (`torch.device`): Where it is wanted.
            window (`int`, *optional*): The layer's window, if it has one.

        Returns:
            `torch.Tensor` of shape `(batch, 1, w, length)`.
        """
        mask = self._make_mask(mask_function, first, length, dtype, device)
        # Compiled code has attention of its own.
        if kernel_for("row_attention", torch.device(device)) is not None:
            view = view_of(mask_function, window, self.packing)
            if view is not None:
                self._views[id(mask)] = (mask, view, first)
        return mask

    def _make_mask(self, mask_function: Callable, first: int, length: int, dtype: torch.dtype, device) -> Tensor:
        packing = self.packing
        batch_size = len(packing.starts)
        queries = packing.columns(device)[:, None, :, None]
        columns = torch.arange(first, first + length, device=device)
        rows = torch.arange(batch_size, device=device)[:, None, None, None]
        allowed = mask_function(rows, torch.zeros_like(rows), queries, columns[None, None, None])
        if packing.visible is not None and first < packing.visible.shape[1]:
            visible = packing.visible[:, first:].to(device)
            visible = F.pad(visible, (0, length - visible.shape[1]), value=True)
            allowed = allowed & visible[:, None, None]
        return _additive(allowed.expand(batch_size, 1, packing.width, length), dtype)

    def sdpa(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling) -> Tensor:
        """Attention by torch; heads that share keys are put side by side, so no key is repeated.

        Args:
            query (`torch.Tensor` of shape `(1, Q, N, D)`): Queries of the packed tokens.
            key, value (`torch.Tensor` of shape `(batch, H, C, D)`): Keys and values of the cache's columns.
            mask (`torch.Tensor` of shape `(batch, 1, w, C)`): That of [`RowPass.mask`].
            dropout (`float`): Part of the weights to drop.
            scaling (`float` or `None`): What scores are multiplied with; `D ** -0.5`, if None.

        Returns:
            `torch.Tensor` of shape `(1, N, Q, D)`.
        """
        known = self._views.get(id(mask)) if self._views else None
        if known is not None and dropout == 0 and has_kernel(query, key, value):
            _, view, first = known
            queries = query.transpose(1, 2)  # [1, N, Q, D], or [B, w, Q, D]
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            rows = self._rows(query.device)
            out = row_attention(queries.flatten(0, 1), key, value, rows, view, scaling=scaling, first=first)
            return out.view(queries.shape)
        queries = self._sort(query)  # [B, Q, w, D]
        batch_size, num_heads, width, _ = queries.shape
        num_groups = num_heads // key.shape[1]
        queries = queries.reshape(batch_size, key.shape[1], num_groups * width, -1)
        mask = self._group(mask, num_groups)
        out = F.scaled_dot_product_attention(queries, key, value, mask, dropout_p=dropout, scale=scaling)
        out = out.view(batch_size, num_heads, width, -1)
        # As transformers' own functions return it: some layers take a view of it.
        return self._pack(out.transpose(1, 2).contiguous())

    def eager(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs) -> Tensor:
        """Attention by the target's own function, with its soft-caps and sinks.

        Args:
            module (`nn.Module`): The layer's attention.
            query (`torch.Tensor` of shape `(1, Q, N, D)`): Queries of the packed tokens.
            key, value (`torch.Tensor` of shape `(batch, H, C, D)`): Keys and values of the cache's columns.
            mask (`torch.Tensor` of shape `(batch, 1, w, C)`): That of [`RowPass.mask`].
            kwargs: What else the layer passes.

        Returns:
            `torch.Tensor` of shape `(1, N, Q, D)`.
        """
        return self._pack(_eager_attention(module)(module, self._sort(query), key, value, mask, **kwargs)[0])

    def _rows(self, device: torch.device) -> Rows:
        return self.packing.rows(device)

    def _sort(self, query: Tensor) -> Tensor:
        """Queries `(batch, Q, w, D)` of `(1, Q, N, D)`."""
        if len(self.packing.counts) == 1:
            return query
        return self.packing.unpack(query.transpose(1, 2)).transpose(1, 2)

    def _pack(self, values: Tensor) -> Tensor:
        return self.packing.pack(values)

    def _group(self, mask: Tensor, num_groups: int) -> Tensor:
        """The mask once per head of a group, made once for all layers."""
        if num_groups == 1:
            return mask
        # The mask is kept with it, so that its id stays its own.
        key = (id(mask), num_groups)
        if key not in self._grouped:
            grouped = mask.unsqueeze(2).expand(-1, -1, num_groups, -1, -1).flatten(2, 3)
            self._grouped[key] = (mask, grouped)
        return self._grouped[key][1]


# Where a window shows that it is one: it is not cut off by the start of a text.
_FAR = Packing([1 << 20], [1])


class FixedPass(RowPass):
    """A pass over rows of as many tokens each, with everything that changes in tensors: nothing is packed.

    Args:
        starts (`torch.LongTensor` of shape `(batch,)`): Column of each row's first token.
        width (`int`): Tokens of a row, w.
        visible (`torch.BoolTensor` of shape `(batch, columns)`): Columns that are no padding.
    """

    def __init__(self, starts: Tensor, width: int, visible: Tensor):
        super().__init__(_FAR)
        self._starts, self._width, self._visible = starts, width, visible

    def _make_mask(self, mask_function: Callable, first: int, length: int, dtype: torch.dtype, device) -> Tensor:
        queries = (self._starts.unsqueeze(1) + torch.arange(self._width, device=device))[:, None, :, None]
        columns = torch.arange(first, first + length, device=device)
        rows = torch.arange(queries.shape[0], device=device)[:, None, None, None]
        allowed = mask_function(rows, torch.zeros_like(rows), queries, columns[None, None, None])
        return _additive(allowed & self._visible[:, None, None, first : first + length], dtype)

    def _rows(self, device: torch.device) -> Rows:
        return even_rows(self._starts, self._width, self._visible)

    def _sort(self, query: Tensor) -> Tensor:
        return query

    def _pack(self, values: Tensor) -> Tensor:
        return values

    def _group(self, mask: Tensor, num_groups: int) -> Tensor:
        return mask.unsqueeze(2).expand(-1, -1, num_groups, -1, -1).flatten(2, 3)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, torch.finfo(dtype).min)


def _attention(base: str, module: nn.Module, query, key, value, attention_mask, **kwargs) -> tuple:
    current = _traced.what if torch.compiler.is_compiling() else _pass.get()
    if not isinstance(current, RowPass):
        if current is not None:
            current.note_attention(module, attention_mask, kwargs)
        function = _eager_attention(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
        return function(module, query, key, value, attention_mask, **kwargs)
    if base == "eager":
        return current.eager(module, query, key, value, attention_mask, **kwargs), None
    return current.sdpa(query, key, value, attention_mask, kwargs.get("dropout", 0.0), kwargs.get("scaling")), None


def _mask(base: str, batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, **kwargs):
    current = _traced.what if torch.compiler.is_compiling() else _pass.get()
    if not isinstance(current, RowPass):
        function = ALL_MASK_ATTENTION_FUNCTIONS[base]
        mask = function(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
            **kwargs,
        )  # fmt: skip
        if current is not None:
            current.note_mask(mask, kwargs.get("use_vmap", False))
        return mask
    names = ("mask_function", "dtype", "device")
    function, dtype, device = (kwargs[name] for name in names)
    return current.mask(function, kv_offset, kv_length, dtype, device, kwargs.get("local_size"))


def view_of(mask_function: Callable, window: int | None, packing: Packing) -> LayerView | None:
    """What the tokens of a packed pass see; None where that is not every token before them, or a window of these.

    Functions with a window are sliding windows or chunks: of either a token sees columns without a gap, which are
    known by their ends. In a pass in which chunks show what windows would, they are windows.

    Args:
        mask_function (`Callable`): As transformers' mask interface gets it.
        window (`int`, *optional*): The `local_size` that comes with it.
        packing ([`Packing`]): Where the pass's tokens stand.
    """
    if mask_function is causal_mask_function:
        return LayerView(is_causal=True)
    if window is None:
        return None
    host = torch.device("cpu")
    rows, columns = (cells.unsqueeze(1) for cells in packing.cells(host))
    nearest = (columns - window + 1).clamp_min(0)
    seen = torch.cat([nearest, columns], 1)
    hidden = torch.cat([nearest - 1, columns + 1], 1)
    try:
        is_window = mask_function(rows, torch.zeros_like(rows), columns, seen).all()
        is_window &= ~(mask_function(rows, torch.zeros_like(rows), columns, hidden) & (hidden >= 0)).any()
    except RuntimeError:
        # It reads tensors, which lie on another device.
        return None
    return LayerView(window, is_causal=True) if is_window else None


def _eager_attention(module: nn.Module) -> Callable | None:
    """The function that a modeling file falls back to."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


for _base in _BASES:
    AttentionInterface.register(f"{_PREFIX}{_base}", partial(_attention, _base))
    AttentionMaskInterface.register(f"{_PREFIX}{_base}", partial(_mask, _base))
