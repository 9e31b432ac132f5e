"""Keys and values in memory with room for those to come.

transformers' own cache copies all of them into fresh memory for every token: a tenth to a fifth of a step where a
hundred rows are written on a CPU.
"""

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer's keys and values: views into buffers that grow now and then."""

    def __init__(self):
        super().__init__()
        self._buffers: list[Tensor | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        (self._buffers[0], self.keys), (self._buffers[1], self.values) = (
            _append(buffer, held, states)
            for buffer, held, states in zip(
                self._buffers, (self.keys, self.values), (key_states, value_states), strict=True
            )
        )
        return self.keys, self.values


def _append(buffer: Tensor | None, held: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    length = held.shape[-2] if held.numel() else 0
    end = length + states.shape[-2]
    # What is held lies elsewhere once rows have been chosen among.
    if buffer is None or end > buffer.shape[-2] or held.data_ptr() != buffer.data_ptr():
        buffer = states.new_empty(*states.shape[:-2], end + end // 4 + 64, states.shape[-1])
        if length:
            buffer[..., :length, :] = held
    buffer[..., length:end, :] = states
    return buffer, buffer[..., :end, :]


def roomy_cache(target: PreTrainedModel) -> DynamicCache | None:
    """The cache that `generate()` would make for a `target` on a CPU, its layers that see everything with room.

    Returns:
        `DynamicCache`, *optional*: None where the target is elsewhere, keeps more than keys and values, or was told
        what cache to use.
    """
    own = target.generation_config
    is_told = own.use_cache is False or own.cache_implementation is not None or target.config.is_encoder_decoder
    # Models from before there were attention functions may have caches of their own.
    if is_told or target.device.type != "cpu" or not getattr(target, "_supports_attention_backend", False):
        return None
    cache = DynamicCache(config=target.config.get_text_config(decoder=True))
    if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return None
    # Layers with a window have a size of their own.
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
