"""States that a model keeps elsewhere than in the layers of a transformers Cache.

xLSTM keeps them in its own cache object, MiniMax in a list beside its cache's layers, and RecurrentGemma in attributes
of its modules, where two texts would overwrite each other. A stream keeps these states as one more layer of its cache,
a :class:`StateLayer`, which is reordered, copied and restored like any other layer. :func:`module_states_installed`
writes it to where the model reads it for the time of a forward pass.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin, LinearAttentionLayer

from decoding.cache.growing import layers_of, tokens_in
from decoding.transformers_private import CACHE_ARGUMENTS

__all__ = ["StateLayer", "WrappedCache", "as_model_cache", "module_states_installed", "with_states"]

# Attributes of modules that are states: RecurrentGemma's, which are the only ones in transformers 5.23.
ON_MODULES = ("conv1d_state", "recurrent_states")
_on_modules = threading.RLock()  # held while a text's states are on modules, which all threads share


class StateLayer(LinearAttentionLayer):
    """The values of some attributes of other objects: trees of tensors, rows first.

    Args:
        attributes: each an object and the name of its attribute.
    """

    def __init__(self, attributes: list[tuple[Any, str]]) -> None:
        super().__init__()
        self.attributes = attributes
        self.trees: list[Any] = self.read()

    def read(self) -> list[Any]:
        """The attributes' values now."""
        return [getattr(holder, name) for holder, name in self.attributes]

    def install(self, trees: list[Any]) -> None:
        """Write states to the attributes."""
        for (holder, name), tree in zip(self.attributes, trees, strict=True):
            setattr(holder, name, tree)

    def lock(self) -> AbstractContextManager[Any]:
        """A context in which no other thread reads or writes these attributes."""
        shared = any(isinstance(holder, nn.Module) for holder, _ in self.attributes)
        return _on_modules if shared else nullcontext()

    def reorder_cache(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        self.trees = _changed(self.trees, lambda states: states.index_select(0, rows.to(states.device)))

    def __deepcopy__(self, memo: dict[int, Any]) -> StateLayer:
        copied = copy.copy(self)
        copied.trees = _changed(self.trees, Tensor.clone)
        return copied


def _changed(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _changed(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_changed(value, change) for value in tree)
    return tree


class WrappedCache(Cache):
    """A cache around a cache object of the model's own kind, which forward passes are given instead."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        super().__init__(layers=[StateLayer([(wrapped, "rnn_state")])])


def with_states(model: Any, cache: Any) -> Any:
    """A cache that holds all states of a model: the same one with one more layer, or a :class:`WrappedCache`.

    Args:
        model: a generating transformers model.
        cache: as the model takes or returns it; None before it has made one.
    """
    if hasattr(cache, "rnn_state"):  # xLSTM's
        return WrappedCache(cache)
    if not isinstance(cache, Cache) or _state_layer(cache) is not None:
        return cache
    if hasattr(cache, "linear_cache"):  # MiniMax's
        cache.layers.append(StateLayer([(cache, "linear_cache")]))
    elif attributes := _module_attributes(model, cache):
        layer = StateLayer(attributes)
        if tokens_in(cache) == 0:
            layer.trees = [None] * len(attributes)  # the values there are another text's
        cache.layers.append(layer)
    return cache


def _module_attributes(model: nn.Module, cache: Cache) -> list[tuple[Any, str]]:
    """The modules and names of their attributes in which a model with recurrent layers keeps states."""
    # The cache of RecurrentGemma has no recurrent layer in transformers 5.17.
    known = getattr(getattr(model, "config", None), "model_type", None) == "recurrent_gemma"
    if not known and not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers_of(cache)):
        return []
    return [(module, name) for module in model.modules() for name in ON_MODULES if name in vars(module)]


def _state_layer(cache: Any) -> StateLayer | None:
    layers = layers_of(cache) if isinstance(cache, Cache) else []
    return layers[-1] if layers and isinstance(layers[-1], StateLayer) else None


@contextmanager
def module_states_installed(inputs: dict[str, Any]) -> Iterator[None]:
    """A context for one forward pass over ``inputs``: the states of their cache are where the model reads them.

    ``inputs`` get the wrapped cache where there is one. Afterwards the cache has the new states, and the attributes
    have the values from before (a plain ``generate`` may be running on the same model).
    """
    name = next((argument for argument in CACHE_ARGUMENTS if inputs.get(argument) is not None), "")
    cache = inputs.get(name)
    layer = _state_layer(cache)
    if layer is None:
        yield
        return
    with layer.lock():
        before = layer.read()
        layer.install(layer.trees)
        if isinstance(cache, WrappedCache):
            inputs[name] = cache.wrapped
        try:
            yield
            layer.trees = layer.read()
        finally:
            inputs[name] = cache
            layer.install(before)


def as_model_cache(cache: Any) -> Any:
    """The cache as its model expects it, with the states written to their attributes."""
    layer = _state_layer(cache)
    if layer is None:
        return cache
    with layer.lock():
        layer.install(layer.trees)
    layers_of(cache).pop()
    return cache.wrapped if isinstance(cache, WrappedCache) else cache
