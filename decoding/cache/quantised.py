"""Branches after a quantised cache, which is not packed again for them.

Such a cache cannot forget its last tokens: from time to time it packs all its tokens together, and older ones lose
precision each time. So branches are read by copies of its layers; the kept branch's keys and values are then appended
to the layers themselves, which pack what they would have packed without branches.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, QuantizedCache

__all__ = ["is_quantised", "untouched"]

Read = tuple[Tensor, Tensor]  # keys and values (batch, heads, n, head dim) of n tokens


def is_quantised(cache: object) -> bool:
    """True where a cache holds its keys and values in few bits."""
    return isinstance(cache, QuantizedCache)


@contextmanager
def untouched(cache: Cache) -> Iterator[dict[int, Read]]:
    """A context in which forward passes do not change a quantised cache; other caches are not affected.

    Yields:
        By layer number, the keys and values that a pass would have added; filled in as it runs.
    """
    layers, added = cache.layers, dict[int, Read]()
    if is_quantised(cache):
        cache.layers = [_aside(index, layer, added) for index, layer in enumerate(layers)]
    try:
        yield added
    finally:
        cache.layers = layers


def _aside(index: int, layer: Any, added: dict[int, Read]) -> Any:
    """A layer that stands in for another one."""

    def update(keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> Read:
        added[index] = keys, values
        passing = copy.copy(layer)  # update() assigns anew what a layer holds, it writes nothing in place
        passing.residual_length = sys.maxsize  # so many tokens unpacked: what is thrown away need not be packed
        return passing.update(keys, values, *args, **kwargs)

    aside = copy.copy(layer)
    aside.update = update
    return aside
