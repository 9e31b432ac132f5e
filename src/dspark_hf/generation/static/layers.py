"""Decoder layers through `torch.compile`, in rounds of fixed shapes.

Layers are compiled one by one, so that layers of one kind share their code: it is made once, in the time that one
layer takes. What stands around them, embedding, masks, rotary tables and output head, runs as always. Every bucket has
code of its own, without open sizes.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark_hf.modeling.cache_name import CACHE_NAME
from dspark_hf.modeling.compiling import compiled
from dspark_hf.modeling.taps import decoder_layers


class CompiledLayers:
    """The layers of a target or a drafter, for passes over fixed buffers.

    Args:
        model (`torch.nn.Module`): Whose layers they are; compiled code goes with it.
        layers (`list[torch.nn.Module]`): They, in order.
    """

    def __init__(self, model: nn.Module, layers: list[nn.Module]):
        self._model, self._layers = model, list(layers)
        self._bare: list[nn.Module] = []

    @contextmanager
    def in_use(self, cache: Any, bucket: Hashable) -> Iterator[None]:
        """Run the layers' passes over a cache compiled, and no others.

        Args:
            cache ([`FixedCache`] or [`FixedState`]): The cache; its `layers` are as of the model's.
            bucket (`Hashable`): Shapes of the pass, for which code is made.
        """
        if not self._bare:
            # Some pass may have installed transformers' hooks.
            self._bare = [_without_capture(layer) for layer in self._layers]
        run = compiled(_run_layer, self._model, bucket)
        before = [vars(layer).get("forward") for layer in self._layers]
        for index, layer in enumerate(self._layers):
            vars(layer)["forward"] = partial(self._forward, index, cache, run, layer.forward)
        try:
            yield
        finally:
            for layer, forward in zip(self._layers, before, strict=True):
                del vars(layer)["forward"]
                if forward is not None:
                    vars(layer)["forward"] = forward

    def _forward(self, index: int, cache: Any, run: Callable, forward: Callable, /, *args: Any, **kwargs: Any) -> Any:
        # Layers that share another's keys have none of their own; other threads come with caches of theirs.
        is_ours = kwargs.get(CACHE_NAME) is cache and index < len(cache.layers)
        if not is_ours or not getattr(cache.layers[index], "is_fixed", False):
            return forward(*args, **kwargs)
        kwargs[CACHE_NAME] = LayerCache(cache, cache.layers[index])
        return run(self._bare[index], *args, **kwargs)


class LayerCache:
    """A cache as one layer sees it: code that is traced with it does not depend on the layer's place.

    Args:
        cache ([`FixedCache`] or [`FixedState`]): The cache of all layers.
        layer ([`FixedLayer`] or [`FixedLayerState`]): The layer's own.
    """

    def __init__(self, cache: Any, layer: Any):
        self._cache, self._layer = cache, layer

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """As of [`FixedLayer.update`]: `key_states` and `value_states` of shape `(rows, heads, tokens, dim)`."""
        return self._layer.update(key_states, value_states)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _run_layer(layer, *args, **kwargs):
    return layer.forward(*args, **kwargs)


def compilable_layers(model: PreTrainedModel) -> list[nn.Module] | None:
    """A target's decoder layers, see [`decoder_layers`]; None where they do not take the cache.

    Args:
        model (`PreTrainedModel`): The target.
    """
    layers = decoder_layers(model)
    if layers is None or not all(CACHE_NAME in signature(layer.forward).parameters for layer in layers):
        return None
    return layers


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
