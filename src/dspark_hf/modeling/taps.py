"""The raw outputs of a target's layers, which a drafter reads.

Shapes: B batch, S sequence, M residual streams, E hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .compiling import is_compiled


class Taps:
    """Reads tapped layers off a target's passes.

    Where it is plain whose outputs `hidden_states` holds, hooks that stay for one pass read the tapped layers, and
    nothing is asked for: transformers would hook every layer for good. The last layer is always read by a hook, since
    the last entry is post-norm.

    Args:
        model (`PreTrainedModel`): The target.
        layer_ids (`Sequence[int]`): The tapped layers, 0-based.

    Attributes:
        entries (`list[int]`): What is to be asked for as `output_hidden_states`; empty where nothing is.

    Raises:
        `ValueError`: If the last layer is tapped and cannot be found.
    """

    def __init__(self, model: PreTrainedModel, layer_ids: Sequence[int]):
        self._model, self._layer_ids = model, list(layer_ids)
        self._stacks, self._last = stacks_streams(model), _last_layer_id(model)
        self._hooked = _hooked_layers(model, self._layer_ids) if self._layer_ids else []
        # Layers themselves may be replaced.
        self._decoder, self._name = (model.get_decoder(), _name_of_layers(model)) if self._hooked else (None, None)
        self.entries = [layer_id + 1 for layer_id in self._layer_ids if layer_id not in self._hooked]

    @contextmanager
    def in_pass(self) -> Iterator["TappedPass"]:
        """Around the pass that is read, by what this gives."""
        layers = getattr(self._decoder, self._name) if self._hooked else []
        seen = TappedPass(self._decoder, {index: layers[index] for index in self._hooked}, self._last)
        try:
            yield seen
        finally:
            seen.end()

    def read(self, seen: "TappedPass", hidden_states: Any) -> list[Tensor]:
        """The taps of a pass.

        Args:
            seen ([`TappedPass`]): What [`in_pass`] gave.
            hidden_states (`tuple[torch.Tensor]` or `None`): Those that it returned.

        Returns:
            `list[torch.Tensor]`: A tensor `(batch, sequence, hidden)` for each tapped layer.

        Raises:
            `ValueError`: If the pass did not show a tapped layer's output.
        """
        outputs = seen.outputs
        if outputs.keys() != set(self._hooked) or (self.entries and hidden_states is None):
            raise ValueError(
                f"{type(self._model).__name__} returns no hidden states, so a drafter cannot read it. Generate "
                "without a drafter."
            )
        taps = [outputs[index] if index in self._hooked else hidden_states[index + 1] for index in self._layer_ids]
        return [merge_streams(tap, self._stacks) for tap in taps]


class TappedPass:
    """What hooks note of one pass of a target, in the thread that made this.

    Args:
        decoder (`nn.Module`, *optional*): What runs them in a pass of its own.
        layers (`dict[int, nn.Module]`): The layers that are read, by their ids.
        last (`int`, *optional*): Id of the last layer, whether it is read or not.

    Attributes:
        outputs (`dict[int, torch.Tensor]`): What they put out.
    """

    def __init__(self, decoder: nn.Module | None, layers: dict[int, nn.Module], last: int | None):
        self.outputs: dict[int, Tensor] = {}
        self._last, self._thread, self._depth = last, get_ident(), 0
        self._hooks = [layer.register_forward_hook(partial(self._note, index)) for index, layer in layers.items()]
        if layers:
            self._hooks.append(decoder.register_forward_pre_hook(self._enter))
            self._hooks.append(decoder.register_forward_hook(self._leave))

    def end(self) -> None:
        """Read no more."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, decoder: nn.Module, inputs: tuple) -> None:
        # A hook of someone else may run another pass within this one.
        self._depth += self._is_here()

    def _leave(self, decoder: nn.Module, inputs: tuple, output: Any) -> None:
        self._depth -= self._is_here()

    def _note(self, layer_id: int, layer: nn.Module, inputs: tuple, output: Any) -> None:
        # Where layers run more than once, `hidden_states` begins with the first time, and the final norm comes behind
        # the last.
        is_wanted = layer_id == self._last or layer_id not in self.outputs
        if is_wanted and self._depth <= 1 and self._is_here():
            self.outputs[layer_id] = output[0] if isinstance(output, tuple) else output

    def _is_here(self) -> bool:
        # Another thread may run the same target; compiled code is traced in this one.
        return torch.compiler.is_compiling() or get_ident() == self._thread


def stacks_streams(model: PreTrainedModel) -> bool:
    """Whether the layers of a `model` put out their residual streams one behind the other, before the batch."""
    return getattr(model.config.get_text_config(decoder=True), "altup_num_inputs", None) is not None


def merge_streams(tap: Tensor, is_stacked: bool = False) -> Tensor:
    """The states `(batch, sequence, hidden)` of a tapped layer.

    Args:
        tap (`torch.Tensor` of shape `(batch, sequence, hidden)` or with streams): Its output. Layers with several
            residual streams put out `(batch, sequence, streams, hidden)` (DeepSeek-V4's hyper-connections) or
            `(streams, batch, sequence, hidden)` (Gemma 3n's AltUp), of which a drafter reads the mean.
        is_stacked (`bool`, *optional*, defaults to `False`): Whether streams come first, see [`stacks_streams`].
    """
    return tap.mean(0 if is_stacked else 2) if tap.dim() == 4 else tap


def decoder_layers(model: PreTrainedModel) -> list[nn.Module] | None:
    """A target's decoder layers, in order; None where they do not stand in one list.

    Args:
        model (`PreTrainedModel`): The target.
    """
    name = _name_of_layers(model)
    return None if name is None else list(getattr(model.get_decoder(), name))


def _name_of_layers(model: PreTrainedModel) -> str | None:
    lists = [one for one in model.get_decoder().named_children() if isinstance(one[1], nn.ModuleList)]
    found = [name for name, layers in lists if len(layers) - 1 == _last_layer_id(model)]
    return found[0] if len(found) == 1 else None


def _last_layer_id(model: PreTrainedModel) -> int | None:
    num_layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    return None if num_layers is None else num_layers - 1


def _hooked_layers(model: PreTrainedModel, layer_ids: list[int]) -> list[int]:
    """The tapped layers that are read by hooks: the last, and all where `hidden_states` holds their outputs."""
    last, layers = _last_layer_id(model), decoder_layers(model)
    if layers is None:
        if last in layer_ids:
            raise ValueError(
                f"This drafter reads the last of {last + 1} layers of its target before the final norm, and "
                f"{type(model).__name__} does not keep its layers in one list. Generate without a drafter."
            )
        return []
    decoder = model.get_decoder()
    # A class, where transformers records what modules of that class put out.
    recorded = (getattr(decoder, "_can_record_outputs", None) or {}).get("hidden_states")
    is_plain = isinstance(recorded, type) and layers == [one for one in decoder.modules() if isinstance(one, recorded)]
    # Layers that share another's keys may be spared tokens of the prompt, if nobody asks for hidden states.
    is_plain = is_plain and not getattr(decoder.config, "num_kv_shared_layers", 0)
    # Compiled code keeps the hooks that it was traced with.
    is_plain = is_plain and not any(map(is_compiled, model.modules()))
    # What is out of range is refused elsewhere.
    return [index for index in set(layer_ids) if index == last or (is_plain and index in range(last))]
