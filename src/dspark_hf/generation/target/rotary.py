"""Rotary frequencies that depend on how long a sequence is by now: each token of a block gets those of its own step.

transformers sets the frequencies of a forward pass by its highest position: `longrope` has other ones beyond the
original length, `dynamic` a new base at each length, which it keeps until a longer pass or one below the original
length (`transformers.modeling_rope_utils.dynamic_rope_update`). In plain `generate()` a pass behind the prompt is a
single column, so a block's columns are given to the rotary module one by one, from the state that plain `generate()`
would find.
Shapes: B batch, w tokens of one forward pass.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark_hf.modeling.compiling import is_compiled

from .columns import ColumnInputs

# Others may be anybody's, and are given columns one by one, which is never wrong. Image encoders are axial.
_OF_POSITION_ALONE = frozenset({"default", "linear", "yarn", "llama3", "proportional", "axial"})
# Hooks are on modules, which belong to all threads that use a model.
_lock = threading.RLock()
_Key = tuple[nn.Module, str | None]


class RotaryStepper:
    """Stands in for the rotary modules of a target in passes behind the prompt, where that makes a difference.

    Where it does, a token's frequencies depend on the longest row of the batch, so rows must grow in step.

    Args:
        model (`PreTrainedModel`): The target.
        columns ([`ColumnInputs`]): The target's inputs, which tell how far positions may go.

    Attributes:
        is_on (`bool`): Whether frequencies may change in this generation.

    Raises:
        `ValueError`: If they may, and the modules cannot be stood in for.
    """

    def __init__(self, model: PreTrainedModel, columns: ColumnInputs):
        modules = [module for module in model.modules() if _varying_types(module)]
        self.is_on = bool(modules)
        if modules and (end := columns.last_position) is not None:
            self.is_on = end >= min(map(_original_len, modules))
        self._modules = modules if self.is_on else []
        if self.is_on:
            self._check(model)
        # What a module keeps, per layer type that it has frequencies of, as of the first token behind the prompt.
        self._states: dict[_Key, dict[str, Any]] = {}
        self._are_open: set[_Key] = set()
        # What modules were called with: in the latest pass, and for the last column that stands.
        self._latest: dict[_Key, tuple[Tensor, dict[str, Any]]] = {}
        self._ends: dict[_Key, tuple[Tensor, dict[str, Any]]] = {}

    def _check(self, model: PreTrainedModel) -> None:
        what = None
        if any(
            is_compiled(outer) and any(inner in self._modules for inner in outer.modules())
            for outer in model.modules()
        ):
            what = "is compiled with the rotary modules inside. Compile its decoder layers alone"
        elif model.config.get_text_config(decoder=True).model_type == "deepseek_v4":
            what = "gives positions to whole groups of tokens. Generate up to its original length"
        if what is not None:
            kinds = sorted({kind for module in self._modules for kind in _varying_types(module)})
            raise ValueError(
                f"Rotary frequencies of {type(model).__name__} ({', '.join(kinds)}) depend on how long a pass is, so "
                "the columns of a block must be told apart, which cannot be done here: the model "
                f"{what}, or generate without a drafter."
            )

    @contextmanager
    def in_steps(self) -> Iterator[None]:
        """Passes of this thread in this block have, column by column, the frequencies of single steps."""
        if not self._modules:
            yield
            return
        with _lock:
            if not self._states:
                self._states = {key: _state(*key) for module in self._modules for key in _keys(module)}
                self._are_open = set(self._states)
            self._thread = threading.get_ident()
            hooks = [module.register_forward_hook(self._step, with_kwargs=True) for module in self._modules]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

    def _step(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """What the module returns for a block, as made by single steps; a forward hook."""
        if threading.get_ident() != self._thread:
            return output
        given = signature(module.forward).bind(*args, **kwargs).arguments
        positions = given.pop("position_ids")  # [..., w]
        key = (module, given.get("layer_type"))
        self._latest[key] = (positions, given)
        parts = []
        for column in positions.split(1, -1):
            _set_state(*key, self._states[key])
            parts.append(module.forward(position_ids=column, **given))
            if key in self._are_open:
                # It is never rejected, and from here on a state is that of the longest pass.
                self._are_open.discard(key)
                self._states[key] = _state(*key)
        if len(parts) == 1:
            return parts[0]
        if isinstance(output, Tensor):
            return _join(parts, output)
        return type(output)(
            _join(list(values), whole) for values, whole in zip(zip(*parts, strict=True), output, strict=True)
        )

    def commit(self, num_rejected: int) -> None:
        """The latest pass stands, but for its last `num_rejected` columns."""
        for key, (positions, given) in self._latest.items():
            num_kept = positions.shape[-1] - num_rejected
            if num_kept > 0:
                self._ends[key] = (positions[..., num_kept - 1 : num_kept], given)
        self._latest = {}

    def forget(self) -> None:
        """All columns are processed anew, in one pass."""
        self._states, self._latest, self._ends = {}, {}, {}

    def close(self) -> None:
        """Leave the modules in the state that plain `generate()` leaves them in: later calls go on from there."""
        for key, state in self._states.items():
            _set_state(*key, state)
            if key in self._ends:
                positions, given = self._ends[key]
                key[0].forward(position_ids=positions, **given)


def varies_with_length(model: PreTrainedModel) -> bool:
    """Whether rotary frequencies of a target `model` may depend on how long a pass is."""
    return any(_varying_types(module) for module in model.modules())


def _varying_types(module: nn.Module) -> list[str]:
    """Rope types of a rotary module whose frequencies may depend on the length of a pass."""
    types = getattr(module, "rope_type", None)
    if types is None or "position_ids" not in signature(module.forward).parameters:
        return []
    return [
        kind for kind in (types.values() if isinstance(types, dict) else [types]) if kind not in _OF_POSITION_ALONE
    ]


def _original_len(module: nn.Module) -> int:
    """Up to this length, frequencies stay the same; 0 if that is not known."""
    types = set(_varying_types(module))
    parameters = getattr(module.config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    lengths = {"dynamic": getattr(module, "original_max_seq_len", 0)}
    found = [rope.get("original_max_position_embeddings", 0) for rope in nested or [parameters]
             if rope.get("rope_type") == "longrope"]  # fmt: skip
    lengths["longrope"] = min(found, default=0)
    return min(lengths.get(kind, 0) for kind in types)


def _keys(module: nn.Module) -> list[_Key]:
    types = module.rope_type
    return [(module, layer_type) for layer_type in types] if isinstance(types, dict) else [(module, None)]


def _owns(name: str, layer_type: str | None) -> bool:
    return not name.startswith("_") and (layer_type is None or name.startswith(f"{layer_type}_"))


def _state(module: nn.Module, layer_type: str | None) -> dict[str, Any]:
    """Attributes and buffers of a module that belong to a layer type, or all."""
    return {name: value for name, value in (vars(module) | module._buffers).items() if _owns(name, layer_type)}


def _set_state(module: nn.Module, layer_type: str | None, state: dict[str, Any]) -> None:
    for name in _state(module, layer_type).keys() - state.keys():
        delattr(module, name)
    for name, value in state.items():
        setattr(module, name, value)


def _join(parts: list[Tensor], whole: Tensor) -> Tensor:
    """Columns in the place that they have in what the module returns for all of them."""
    sizes = zip(parts[0].shape, whole.shape, strict=True)
    return torch.cat(parts, next(dim for dim, (one, all_) in enumerate(sizes) if one != all_))
