"""Recurrent states of linear attention, as in Qwen3-Next: one tensor for all tokens so far, which no token can leave.

They are copied before a block, and the copy is put back if a part of the block is rejected. The inputs of convolutions
go with them; a layer that has nothing but those (LFM2) can be cropped.
"""

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

# Targets whose forward pass continues from a state with several tokens at once, as with one after the other. Others
# (Mamba, Jamba, Zamba, RecurrentGemma) start from zeros unless they are given a single token; Zamba2's single tokens
# disagree with its own pass over all of them.
_CONTINUING = {
    "bailing_hybrid",
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "zaya",
}


def continues(model_type: str) -> bool:
    """Whether targets of this `model_type` can process a block behind a recurrent state."""
    return model_type in _CONTINUING


def is_linear(layer: object) -> bool:
    """Whether a cache's `layer` may hold recurrent states or inputs of a convolution; it may hold keys, too."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


class RecurrentStates:
    """The recurrent states of a cache, and a copy of them.

    Args:
        layers (`list`): The layers that hold them.
    """

    def __init__(self, layers: list[LinearAttentionCacheLayerMixin]):
        self._layers = layers
        self._saved: list[tuple[dict[int, Tensor], int, Tensor]] | None = None

    @classmethod
    def of(cls, cache: Cache) -> "RecurrentStates | None":
        """Those of a `cache` that has seen tokens; None if it has none. Convolution inputs alone can be cropped."""
        linear = [layer for layer in cache.layers if is_linear(layer)]
        layers = [layer for layer in linear if any(layer.is_recurrent_states_initialized.values())]
        return cls(layers) if layers else None

    def own(self, layer: object) -> bool:
        """Whether `layer` is one of those that hold the states."""
        return any(layer is own for own in self._layers)

    @property
    def is_saved(self) -> bool:
        """Whether there is a copy of the states."""
        return self._saved is not None

    def save(self) -> None:
        """Copy the states, unless the copy is of these still."""
        if self._saved is None:
            self._saved = [
                (states, index, state.clone())
                for layer in self._layers
                for states in (layer.recurrent_states, layer.conv_states)
                for index, state in states.items()
                if state is not None
            ]

    def restore(self) -> None:
        """Put the copy back; it stays."""
        for states, index, saved in self._saved:
            if states[index].shape == saved.shape:
                # In place: compiled targets rely on the address.
                states[index].copy_(saved)
            else:
                states[index] = saved.clone()

    def forget(self) -> None:
        """Let go of the copy, for the states have moved on."""
        self._saved = None
        for layer in self._layers:
            if layer.record_past:
                LinearAttentionCacheLayerMixin.crop(layer, 0)

    @staticmethod
    def start_recording(layer: LinearAttentionCacheLayerMixin) -> None:
        """Let a `layer`'s window that slides keep what it is to drop, as [`crop_attention`] needs it."""
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.activate_past_recording()

    @staticmethod
    def crop_attention(layer: LinearAttentionCacheLayerMixin, num_tokens: int) -> None:
        """Take the last `num_tokens` tokens out of a `layer`'s keys and values, if it has any."""
        for attention_cls in (DynamicSlidingWindowLayer, DynamicLayer):
            if isinstance(layer, attention_cls):
                attention_cls.crop(layer, -num_tokens)
                return
