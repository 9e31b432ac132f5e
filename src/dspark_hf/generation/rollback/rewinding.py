"""Taking rejected tokens out of a cache again, whatever its layers keep.

Keys and values are cut off at the end. Layers that compress them go back by what they noted of the latest pass
(`compressed_cache.py`). Recurrent states are put back to where the pass began (`recurrent_cache.py`), so the tokens of
it that stand are processed again, together with the next block.
"""

from transformers import Cache, DynamicCache, PreTrainedModel

from .compressed_cache import is_compressed, make_rewindable, make_stock
from .recurrent_cache import RecurrentStates, continues, is_linear

# Most tokens that are processed again together with a block; more go into the states by a pass of their own first.
MAX_REPLAYED = 32


def is_rewindable(model: PreTrainedModel, cache: Cache | None) -> bool:
    """Whether rejected tokens can be taken out of the `cache` that a target `model` is used with."""
    if not isinstance(cache, DynamicCache):
        return False
    if not any(map(is_linear, cache.layers)):
        return cache.is_croppable and not (cache.offloading and compresses(cache))
    # Without attention layers a cache does not tell its length.
    has_attention = any(hasattr(layer, "get_seq_length") for layer in cache.layers)
    others_are_croppable = all(is_linear(layer) or layer.is_croppable for layer in cache.layers)
    return continues(_model_type(model)) and has_attention and others_are_croppable and not cache.offloading


def keeps_unknown_state(model: PreTrainedModel) -> bool:
    """Whether a target `model` remembers tokens in a way that is not known here."""
    model_type = _model_type(model)
    return model._is_stateful and model_type != "deepseek_v4" and not continues(model_type)


def replays(model: PreTrainedModel) -> bool:
    """Whether tokens that stand are processed again, because a target `model`'s states are put back to before them."""
    return model._is_stateful and continues(_model_type(model))


def _model_type(model: PreTrainedModel) -> str:
    return model.config.get_text_config(decoder=True).model_type


def compresses(cache: Cache) -> bool:
    """Whether a `cache` keeps less than one entry for a token."""
    return any(map(is_compressed, cache.layers))


class Rewinder:
    """Takes tokens out of a cache, of each row as many.

    Args:
        cache (`Cache`): A cache that [`is_rewindable`].

    Attributes:
        num_replayed (`int`): Tokens that stand but are no longer in the cache, to be processed before any others.
    """

    def __init__(self, cache: Cache):
        self._cache = cache
        self._states: RecurrentStates | None = None
        self._num_inputs = 0
        self.num_replayed = 0

    def start(self) -> None:
        """Be ready for passes that are taken back; to be called behind the prompt."""
        for layer in self._cache.layers:
            if is_compressed(layer):
                make_rewindable(layer)
        self._states = RecurrentStates.of(self._cache)
        # Before, sliding windows would only keep what they are to drop.
        for layer in self._cache.layers:
            if self._holds_state(layer):
                self._states.start_recording(layer)
            elif hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()

    def _holds_state(self, layer: object) -> bool:
        return self._states is not None and self._states.own(layer)

    def begin(self, num_inputs: int) -> None:
        """Note what is needed to take back tokens of the next pass, which processes `num_inputs`."""
        self._num_inputs = num_inputs
        if self._states is not None and num_inputs > 1:
            self._states.save()

    def take_back(self, num_rejected: int) -> None:
        """Take the last `num_rejected` tokens of the latest pass out, or what it left behind if that is 0."""
        self.num_replayed = 0
        num_removed = num_rejected
        if self._states is not None:
            if num_rejected == 0:
                self._states.forget()
            else:
                self._states.restore()
                num_removed = self._num_inputs
                self.num_replayed = self._num_inputs - num_rejected
        for layer in self._cache.layers:
            if self._holds_state(layer):
                self._states.crop_attention(layer, num_removed)
            else:
                layer.crop(-num_removed)

    def can_take_back(self, num_rejected: int) -> bool:
        """Whether `num_rejected` tokens of the latest pass can be taken out; states are not kept for a single one."""
        return num_rejected == 0 or self._states is None or self._states.is_saved

    def stop(self) -> None:
        """Leave the layers as plain `generate()` knows them."""
        for layer in self._cache.layers:
            make_stock(layer)
            if getattr(layer, "record_past", False):
                layer.record_past = False
