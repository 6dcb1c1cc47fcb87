"""A key-value cache that is written in place.

``transformers.DynamicCache`` appends by concatenation: each new token copies every key and value that came before it.
:class:`GrowingLayer` keeps the same interface over storage with spare capacity, so that appending, committing a branch
and rewinding move an index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    EncoderDecoderCache,
    StaticCache,
)

from decoding.transformers_private import is_callers_cache

__all__ = [
    "GrowingLayer",
    "grow_in_place",
    "layers_of",
    "reserve_lookahead_slot",
    "self_attention_cache",
    "tokens_in",
]

# Storage grows by at least this many tokens, and by a sixteenth of the length where that is more: at most 6% of the
# cache is spare capacity, and growing copies each entry 16 times in all rather than once a token. It does not grow
# beyond the tokens that a call may make and some slots for branches.
BLOCK = 128
LOOKAHEAD_SLOTS = 16


class GrowingLayer(DynamicLayer):
    """One full-attention layer of a cache, (batch, heads, length, head dim), appended to in place.

    ``keys`` and ``values`` are views of the used part of a storage with spare capacity. Appending, cropping and keeping
    a branch write what is new and move ``length``. Whatever is assigned to ``keys`` and ``values`` (``reorder_cache``
    and others of the base class do) is taken as the new content.
    """

    def __init__(self) -> None:
        self.expected: int | None = None  # how long the text may become, where that is known
        self.length = 0  # of the keys, and but for the moment between two assignments of the values
        self._values_length = 0
        self._keys: Tensor | None = None  # (batch, heads, capacity, head dim)
        self._values: Tensor | None = None
        super().__init__()

    @property
    def keys(self) -> Any:
        """(batch, heads, length, head dim), or None before the first update."""
        return None if self._keys is None else self._keys.narrow(2, 0, self.length)

    @keys.setter
    def keys(self, content: Tensor | None) -> None:
        self._keys = content
        self.length = 0 if content is None else content.shape[2]

    @property
    def values(self) -> Any:
        """(batch, heads, length, head dim), like ``keys``."""
        return None if self._values is None else self._values.narrow(2, 0, self._values_length)

    @values.setter
    def values(self, content: Tensor | None) -> None:
        self._values = content
        self._values_length = 0 if content is None else content.shape[2]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take dtype and device of the first keys; storage comes with what is written."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[3]))
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """The number of tokens that are kept."""
        return self.length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, n, head dim) keys and values; return all that are kept."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            # Autograd needs what came before intact.
            self.keys, self.values = (
                torch.cat([self.keys, key_states], dim=2),
                torch.cat([self.values, value_states], dim=2),
            )
            return self.keys, self.values
        start, new = self.length, key_states.shape[2]
        keys, values = self._reserve(start + new)
        keys.narrow(2, start, new).copy_(key_states)
        values.narrow(2, start, new).copy_(value_states)
        self.length = self._values_length = start + new
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens; what was written stays until it is overwritten."""
        if tokens_to_remove > 0:
            super().crop(tokens_to_remove)  # means another thing, or nothing, from one version to the next
        else:
            self.length = self._values_length = max(self.length + tokens_to_remove, 0)

    def keep_branches(self, num_branch_tokens: int, winners: list[int], n: int) -> None:
        """Keep, of the last ``num_branch_tokens`` slots, the n of each row's kept branch (``winners``), in place."""
        start = self.length - num_branch_tokens
        for storage in (self._keys, self._values):
            assert storage is not None
            for row, winner in enumerate(winners):
                if winner > 0:
                    rows = storage if len(winners) == 1 else storage.narrow(0, row, 1)
                    rows.narrow(2, start, n).copy_(rows.narrow(2, start + winner * n, n))
        self.length = self._values_length = start + n

    def rebind_storage(self, keys: Tensor, values: Tensor) -> bool:
        """Move the content to other storage, (batch, heads, capacity, head dim) each.

        Returns:
            True where the content was elsewhere and was copied.
        """
        if self._keys is keys and self._values is values:
            return False
        if self.is_initialized:
            keys.narrow(2, 0, self.length).copy_(self.keys)
            values.narrow(2, 0, self.length).copy_(self.values)
        self._keys, self._values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        return True

    def mark_written(self, n: int) -> None:
        """Count n tokens that were written into the storage after the last one."""
        self.length += n
        self._values_length += n

    def reset(self) -> None:
        """Forget everything, storage included."""
        self.keys = self.values = None
        self.is_initialized = False

    def _reserve(self, end: int) -> tuple[Tensor, Tensor]:
        keys, values = self._keys, self._values
        assert keys is not None
        assert values is not None
        # A tensor made in inference mode may not be written to outside it.
        writable = torch.is_inference_mode_enabled() or not keys.is_inference()
        if end <= min(keys.shape[2], values.shape[2]) and writable:
            return keys, values
        capacity = end + max(BLOCK, end // 16)
        if self.expected is not None and self.expected + LOOKAHEAD_SLOTS >= end:
            capacity = min(capacity, self.expected + LOOKAHEAD_SLOTS)
        self._keys, self._values = _grown(keys, self.length, capacity), _grown(values, self.length, capacity)
        return self._keys, self._values


def _grown(entries: Tensor, length: int, capacity: int) -> Tensor:
    batch, heads, _, dim = entries.shape
    grown = entries.new_empty((batch, heads, capacity, dim))
    grown.narrow(2, 0, length).copy_(entries.narrow(2, 0, length))
    return grown


def self_attention_cache(cache: Any) -> Any:
    """The part of a cache that grows with each token (an encoder-decoder's self-attention half)."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def layers_of(cache: Any) -> list[Any]:
    """The layers that grow with each token. (Any: transformers' kinds of layer share no typed interface.)"""
    return self_attention_cache(cache).layers


def grow_in_place(cache: Any, expected: int | None = None) -> None:
    """Turn the plain full-attention layers of ``cache`` into :class:`GrowingLayer`, content kept, object kept.

    ``expected`` is the number of tokens that the text may have, where that is known. Layers of other kinds (static,
    quantised, recurrent, sliding) and offloaded caches stay as they are.
    """
    cache = self_attention_cache(cache)
    if getattr(cache, "offloading", False):
        return
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            grown = GrowingLayer()
            if layer.is_initialized and layer.keys is not None and layer.values is not None and layer.keys.dim() == 4:
                grown.lazy_initialization(layer.keys, layer.values)
                grown.keys, grown.values = layer.keys, layer.values
            cache.layers[index] = grown
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.expected = expected


def reserve_lookahead_slot(cache: Any, model: Any) -> None:
    """Give an empty static cache one more slot: greedy search, for which it is sized, never reads the last token."""
    inner = self_attention_cache(cache)
    if isinstance(inner, StaticCache) and not is_callers_cache(cache):
        inner.layers = StaticCache(config=model.config, max_cache_len=inner.get_max_length() + 1).layers


def tokens_in(cache: Any) -> int:
    """The number of tokens in a cache that was passed in; 0 where there is none.

    A cache of recurrent layers alone does not count tokens: its text is always read from the start.
    """
    if not isinstance(cache, Cache) or not any(isinstance(layer, CacheLayerMixin) for layer in layers_of(cache)):
        return 0
    return int(self_attention_cache(cache).get_seq_length())
