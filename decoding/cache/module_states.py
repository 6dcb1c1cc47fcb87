"""States that a model keeps elsewhere than in the layers of a transformers Cache.

xLSTM has an object of its own, MiniMax a list beside its cache's layers, and RecurrentGemma writes on its modules,
where two texts would overwrite each other. A stream keeps what each of them remembers as one more layer of its cache, a
:class:`StateLayer`, which is reordered, copied and restored like any other, and which :func:`lent` puts where the model
looks for it while a forward pass lasts.
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

__all__ = ["OwnStates", "StateLayer", "handed_back", "module_states_installed", "with_states"]

# Attributes of modules that are states: RecurrentGemma's, which are the only ones in transformers 5.23.
ON_MODULES = ("conv1d_state", "recurrent_states")
_on_modules = threading.RLock()  # held while a text's states stand on modules, which all threads share


class StateLayer(LinearAttentionLayer):
    """What stands at some places, each an object and the name of its attribute: trees of tensors, rows first."""

    def __init__(self, places: list[tuple[Any, str]]) -> None:
        super().__init__()
        self.places = places
        self.trees: list[Any] = self.read()

    def read(self) -> list[Any]:
        """What stands there now."""
        return [getattr(holder, name) for holder, name in self.places]

    def install(self, trees: list[Any]) -> None:
        """Write these states to their places."""
        for (holder, name), tree in zip(self.places, trees, strict=True):
            setattr(holder, name, tree)

    def lock(self) -> AbstractContextManager[Any]:
        """No other thread reads or writes these places in this context."""
        shared = any(isinstance(holder, nn.Module) for holder, _ in self.places)
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


class OwnStates(Cache):
    """A cache of nothing but states of a model's own kind, of which its forward passes are given ``own``."""

    def __init__(self, own: Any) -> None:
        self.own = own
        super().__init__(layers=[StateLayer([(own, "rnn_state")])])


def with_states(model: Any, cache: Any) -> Any:
    """A cache that holds all that a model remembers: the same one with a layer more, or one made of the model's own.

    Args:
        model: whose it is.
        cache: as the model takes or returns it; None before it has made one.
    """
    if hasattr(cache, "rnn_state"):  # xLSTM's
        return OwnStates(cache)
    if not isinstance(cache, Cache) or _state_layer(cache) is not None:
        return cache
    if hasattr(cache, "linear_cache"):  # MiniMax's
        cache.layers.append(StateLayer([(cache, "linear_cache")]))
    elif places := _places_on_modules(model, cache):
        layer = StateLayer(places)
        if tokens_in(cache) == 0:
            layer.trees = [None] * len(places)  # what stands there is another text's
        cache.layers.append(layer)
    return cache


def _places_on_modules(model: nn.Module, cache: Cache) -> list[tuple[Any, str]]:
    """Where a model that has recurrent layers writes on its modules."""
    if not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers_of(cache)):
        return []
    return [(module, name) for module in model.modules() for name in ON_MODULES if name in vars(module)]


def _state_layer(cache: Any) -> StateLayer | None:
    layers = layers_of(cache) if isinstance(cache, Cache) else []
    return layers[-1] if layers and isinstance(layers[-1], StateLayer) else None


@contextmanager
def module_states_installed(inputs: dict[str, Any]) -> Iterator[None]:
    """While the context is open, a forward pass over ``inputs`` finds the states of their cache where it looks for
    them, in ``inputs`` included; afterwards the cache has the new ones, and what stood at their places is back there
    (a plain ``generate`` may be under way on the same model).
    """
    name = next((each for each in CACHE_ARGUMENTS if inputs.get(each) is not None), "")
    cache = inputs.get(name)
    layer = _state_layer(cache)
    if layer is None:
        yield
        return
    with layer.lock():
        before = layer.read()
        layer.install(layer.trees)
        if isinstance(cache, OwnStates):
            inputs[name] = cache.own
        try:
            yield
            layer.trees = layer.read()
        finally:
            inputs[name] = cache
            layer.install(before)


def handed_back(cache: Any) -> Any:
    """The cache as its model knows it, the states at their places for good."""
    layer = _state_layer(cache)
    if layer is None:
        return cache
    with layer.lock():
        layer.install(layer.trees)
    layers_of(cache).pop()
    return cache.own if isinstance(cache, OwnStates) else cache
