"""Hidden states and attentions of the target, one entry per generated token, as plain `generate()` returns them.

Shapes: B batch, w tokens of one forward pass, C cached columns, H heads, E hidden size.
"""

from typing import Any

from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel

from dspark_hf.modeling.taps import stacks_streams

States = tuple[Tensor | None, ...]


class StateRecorder:
    """Keeps what belongs to the tokens that stand. Rows of a batch must then have the same length.

    Args:
        model (`PreTrainedModel`): The target.
        cache (`Cache`): Its cache, whose windows tell how many columns a token attends to.
        generation_config (`GenerationConfig`): Tells what to record.

    Attributes:
        hidden_states (`list[tuple[torch.Tensor]]` or `None`): Per token and layer, `(batch, 1, hidden)`; the first
            entry holds the prompt, or its last chunk.
        attentions (`list[tuple[torch.Tensor]]` or `None`): Per token and layer, `(batch, heads, 1, columns)`; in the
            first entry `(batch, heads, prompt, columns)`.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, generation_config: GenerationConfig):
        is_on = bool(generation_config.return_dict_in_generate)
        self._layer_types = getattr(model.config.get_text_config(decoder=True), "layer_types", None)
        self._token_dim = 2 if stacks_streams(model) else 1
        self._cache = cache
        self.hidden_states: list | None = [] if is_on and generation_config.output_hidden_states else None
        self.attentions: list | None = [] if is_on and generation_config.output_attentions else None

    @property
    def is_on(self) -> bool:
        """Whether there is something to record."""
        return self.hidden_states is not None or self.attentions is not None

    def note_prompt(self, outputs: Any) -> None:
        """Record the `outputs` of a pass over the prompt, in place of the pass before."""
        for entries in (self.hidden_states, self.attentions):
            if entries is not None:
                entries.clear()
        self.note_whole(outputs)

    def note_whole(self, outputs: Any) -> None:
        """Record a pass's `outputs` as one entry, as of a target that computes all tokens anew for the next one."""
        if self.hidden_states is not None:
            self.hidden_states.append(outputs.hidden_states)
        if self.attentions is not None:
            self.attentions.append(outputs.attentions)

    def note_block(self, outputs: Any, num_taken: int, num_replayed: int) -> None:
        """Record a pass over a block; the cache still holds all of it.

        Args:
            outputs (`Any`): The target's.
            num_taken (`int`): Tokens that are recorded.
            num_replayed (`int`): Tokens before them that were recorded already.
        """
        for index in range(num_replayed, num_replayed + num_taken):
            if self.hidden_states is not None:
                self.hidden_states.append(tuple(self._at(states, index) for states in outputs.hidden_states))
            if self.attentions is not None:
                layers = outputs.attentions
                entry = layers and tuple(
                    self._attention(layer, weights, index) for layer, weights in enumerate(layers)
                )
                self.attentions.append(entry)

    def _attention(self, layer: int, weights: Tensor | None, index: int) -> Tensor | None:
        """What one token of a block `(batch, heads, w, columns)` attends to, without columns that it did not reach."""
        if weights is None:
            return None
        num_inputs, num_columns = weights.shape[-2:]
        end = num_columns - (num_inputs - 1 - index)
        window = self._window(layer)
        start = 0 if window is None else max(0, end - window)
        return weights[:, :, index : index + 1, start:end].clone()

    def _window(self, layer: int) -> int | None:
        """The sliding window of a layer, also of one that shares the keys of another."""
        layers = self._cache.layers
        if self._layer_types is not None and layers[layer].keys is None:
            kind = self._layer_types[layer]
            layer = next(
                i for i, other in enumerate(self._layer_types) if other == kind and layers[i].keys is not None
            )
        return getattr(layers[layer], "sliding_window", None)

    def _at(self, states: Tensor | None, index: int) -> Tensor | None:
        # A view would keep the whole block alive, rejected drafts included.
        return None if states is None else states.narrow(self._token_dim, index, 1).clone()
