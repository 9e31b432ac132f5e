"""The raw outputs of a target's layers, which a drafter reads.

Shapes: B batch, S sequence, M residual streams, E hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


class Taps:
    """Reads tapped layers off a target's passes.

    The last entry of `hidden_states` is post-norm: where the last layer is tapped, a hook that stays for one pass
    reads it.

    Args:
        model (`PreTrainedModel`): The target.
        layer_ids (`Sequence[int]`): The tapped layers, 0-based.

    Attributes:
        entries (`list[int]`): What is to be asked for as `output_hidden_states`; empty without taps.

    Raises:
        `ValueError`: If the last layer is tapped and cannot be found.
    """

    def __init__(self, model: PreTrainedModel, layer_ids: Sequence[int]):
        self.entries = [layer_id + 1 for layer_id in layer_ids]
        num_layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
        self._last = num_layers if num_layers in self.entries else None
        self._stacks = stacks_streams(model)
        self._layer = None if self._last is None else _last_layer(model, num_layers)
        self._raw: Tensor | None = None

    @contextmanager
    def in_pass(self) -> Iterator[None]:
        """Around the pass that is read."""
        if self._layer is None:
            yield
            return
        hook = self._layer.register_forward_hook(self._note)
        try:
            yield
        finally:
            hook.remove()

    def _note(self, layer: nn.Module, inputs: tuple, output: Any) -> None:
        self._raw = output[0] if isinstance(output, tuple) else output

    def read(self, hidden_states: Any) -> list[Tensor]:
        """The taps `(batch, sequence, hidden)` of a pass, given its `hidden_states`; to be read once."""
        raw, self._raw = self._raw, None
        taps = [raw if entry == self._last else hidden_states[entry] for entry in self.entries]
        return [merge_streams(tap, self._stacks) for tap in taps]


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


def _last_layer(model: PreTrainedModel, num_layers: int) -> nn.Module:
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    found = [layers for layers in lists if len(layers) == num_layers]
    if len(found) != 1:
        raise ValueError(
            f"This drafter reads the last of {num_layers} layers of its target before the final norm, and "
            f"{type(model).__name__} does not keep its layers in one list. Generate without a drafter."
        )
    return found[0][-1]
