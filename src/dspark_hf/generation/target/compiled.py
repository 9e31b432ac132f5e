"""The target in the decoding loop, with its decoder layers through `torch.compile`.

Layers are compiled one by one, so that layers of one kind share their code: it is made once, in the time that one
layer takes. What stands around them, embedding, masks, rotary tables and output head, runs as always.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from dspark_hf.modeling.cache_name import CACHE_NAME
from dspark_hf.modeling.compiling import compiled, mark_open, open_sizes

from .flat import FlatRunner
from .packing import Packing
from .row_attention import TracedPass, attention_of
from .row_cache import RowLayer, TracedRowLayer


class CompiledRunner(FlatRunner):
    """A [`FlatRunner`] whose rounds are compiled. The prompt is processed as always.

    Args:
        model (`PreTrainedModel`): The target.
        args, kwargs: As of [`FlatRunner`].

    Raises:
        `ValueError`: If its rounds cannot be packed.
    """

    _row_layer_cls = TracedRowLayer

    def __init__(self, model: PreTrainedModel, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        if not self._may_pack():
            raise ValueError(
                f"compile=True needs rounds that can be packed, and those of {type(model).__name__} with these inputs "
                "cannot be. Leave compile out."
            )
        self._layers = CompiledLayers(model)

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, chunk_size: int | None = None) -> Iterator[Tensor]:
        yield from super().prefill(input_ids, chunk_size)
        if not self._is_flat:
            warnings.warn(
                f"compile=True leaves the target as it is: not every layer of {type(self._model).__name__} asks "
                "transformers' attention interface, so its passes run as without.",
                stacklevel=2,
            )

    @torch.no_grad()
    def verify(self, ids: Tensor, lens: list[int], draft_lens: list[int]) -> Tensor:
        num_logits = max(draft_lens) + 1
        if self._is_flat and num_logits == 1:
            # Code for a single token is another: a row with room has one more token processed, which nobody reads.
            shortest = lens.index(min(lens))
            draft_lens = [int(row == shortest) for row in range(len(lens))]
        return super().verify(ids, lens, draft_lens)[:, :num_logits]

    @contextmanager
    def _in_rows(self, packing: Packing) -> Iterator[None]:
        row_pass = TracedPass(packing, self._model.device)
        with attention_of(self._model, row_pass), self._layers.in_use(self.cache):
            yield


class CompiledLayers:
    """A target's decoder layers, for passes over a [`RowCache`].

    Args:
        model (`PreTrainedModel`): The target; its [`decoder_layers`] are known.
    """

    def __init__(self, model: PreTrainedModel):
        self._layers = decoder_layers(model)
        self._run = compiled(_run_layer, model)
        self._bare: list[nn.Module] = []

    @contextmanager
    def in_use(self, cache: Cache) -> Iterator[None]:
        """Run the layers' passes over `cache` compiled; any other pass is none of ours."""
        if not self._bare:
            # The prompt's pass has installed transformers' hooks.
            self._bare = [_without_capture(layer) for layer in self._layers]
        before = [vars(layer).get("forward") for layer in self._layers]
        for index, layer in enumerate(self._layers):
            vars(layer)["forward"] = partial(self._forward, index, cache, layer.forward)
        try:
            with open_sizes():
                yield
        finally:
            for layer, forward in zip(self._layers, before, strict=True):
                del vars(layer)["forward"]
                if forward is not None:
                    vars(layer)["forward"] = forward

    def _forward(self, index: int, cache: Cache, forward: Callable, /, *args: Any, **kwargs: Any) -> Any:
        # Layers that share another's keys have none of their own; other threads come with caches of theirs.
        is_ours = kwargs.get(CACHE_NAME) is cache and index < len(cache.layers)
        if not is_ours or not isinstance(cache.layers[index], RowLayer):
            return forward(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Tensor):
                    mark_open(part)
        kwargs[CACHE_NAME] = LayerCache(cache, index)
        return self._run(self._bare[index], *args, **kwargs)


class LayerCache:
    """The cache as one layer sees it: code that is traced with it does not depend on the layer's place.

    Args:
        cache ([`RowCache`]): The cache of all layers.
        index (`int`): The layer.
    """

    def __init__(self, cache: Cache, index: int):
        self._cache = cache
        self._layer = cache.layers[index]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """As of [`RowLayer.update`]."""
        return self._layer.update(key_states, value_states)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _run_layer(layer, *args, **kwargs):
    return layer.forward(*args, **kwargs)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module] | None:
    """A target `model`'s decoder layers, in order; None where they are in no single list, or do not take the cache."""
    num_layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    found = [list(layers) for layers in lists if len(layers) == num_layers]
    if len(found) != 1 or not all(CACHE_NAME in signature(layer.forward).parameters for layer in found[0]):
        return None
    return found[0]


def _without_capture(module: nn.Module) -> nn.Module:
    """A layer with the same weights and without transformers' hooks for outputs, which torch.compile cannot trace.

    Outputs inside a layer are not recorded in these passes; those of the layer itself are, outside of it.
    """
    bare = copy.copy(module)
    bare._forward_hooks = OrderedDict(
        (key, hook)
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__module__", None) != "transformers.utils.output_capturing"
    )
    bare._modules = {
        name: None if child is None else _without_capture(child) for name, child in module._modules.items()
    }
    return bare
