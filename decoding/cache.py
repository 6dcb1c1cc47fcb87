"""A key-value cache that is written in place.

``transformers.DynamicCache`` appends by concatenation: each new token copies every key and value that came before it.
:class:`GrowingLayer` keeps the same interface over storage with spare room, so that appending, committing a branch
and rewinding move an index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
    StaticCache,
)

__all__ = [
    "GrowingLayer",
    "grow_in_place",
    "is_recurrent",
    "is_sliding",
    "layers_of",
    "make_room_to_look_ahead",
    "self_attention_cache",
]

# Storage grows by at least this many tokens, and by a sixteenth of the length where that is more: at most 6% of the
# cache is spare room, and growing copies each entry 16 times in all rather than once a token.
BLOCK = 256


class GrowingLayer(DynamicLayer):
    """One full-attention layer of a cache, (batch, heads, length, head dim), appended to in place.

    ``keys`` and ``values`` are views of the used part of the storage. Whatever replaces them (``crop``,
    ``reorder_cache``, ``batch_select_indices`` of the base class) needs no counterpart here: a view that still
    starts at the storage goes on in it, anything else is taken as the new content.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: Any  # (batch, heads, length, head dim); None before the first update
        self.values: Any
        self.storage: tuple[Tensor, Tensor] | None = None  # each (batch, heads, capacity, head dim)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, n, head dim) keys and values; return all that are kept."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            return super().update(key_states, value_states, *args, **kwargs)  # autograd needs what came before intact
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length, new = self.get_seq_length(), key_states.shape[-2]
        keys, values = self._room_for(length + new, key_states, value_states)
        keys.narrow(2, length, new).copy_(key_states)
        values.narrow(2, length, new).copy_(value_states)
        self.keys, self.values = keys.narrow(2, 0, length + new), values.narrow(2, 0, length + new)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens; what was written stays until it is overwritten."""
        length = self.get_seq_length()
        if tokens_to_remove > 0 or -tokens_to_remove >= length:
            super().crop(tokens_to_remove)
        else:
            self.keys = self.keys.narrow(2, 0, length + tokens_to_remove)
            self.values = self.values.narrow(2, 0, length + tokens_to_remove)

    def settle(self, looked_at: int, winners: list[int], n: int) -> None:
        """Of the last ``looked_at`` slots, keep the n of each row's winner (its number among runs of n), in place."""
        start = self.keys.shape[2] - looked_at
        for entries in (self.keys, self.values):
            if len(winners) == 1:
                if winners[0] > 0:
                    entries.narrow(2, start, n).copy_(entries.narrow(2, start + winners[0] * n, n))
                continue
            for row, winner in zip(entries, winners, strict=True):
                if winner > 0:
                    row.narrow(1, start, n).copy_(row.narrow(1, start + winner * n, n))
        self.keys, self.values = self.keys.narrow(2, 0, start + n), self.values.narrow(2, 0, start + n)

    def reset(self) -> None:
        """Forget everything, storage included."""
        self.storage = None
        super().reset()

    def _room_for(self, end: int, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        length = self.get_seq_length()
        storage = self.storage
        if (
            storage is not None
            and end <= storage[0].shape[-2]
            and length > 0
            and self.keys.data_ptr() == storage[0].data_ptr()
            and self.keys.shape[0] == storage[0].shape[0]
            # A tensor made in inference mode may not be written to outside it.
            and (torch.is_inference_mode_enabled() or not storage[0].is_inference())
        ):
            return storage
        capacity = end + max(BLOCK, end // 16)
        self.storage = (
            _moved_into_room(self.keys, length, key_states, capacity),
            _moved_into_room(self.values, length, value_states, capacity),
        )
        return self.storage


def _moved_into_room(used: Tensor, length: int, like: Tensor, capacity: int) -> Tensor:
    batch, heads, _, dim = like.shape
    room = like.new_empty((batch, heads, capacity, dim))
    if length > 0:
        room[:, :, :length] = used
    return room


def self_attention_cache(cache: Any) -> Any:
    """The part of a cache that grows with each token (an encoder-decoder's self-attention half)."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def layers_of(cache: Any) -> list[Any]:
    """The layers that grow with each token. (Any: transformers' kinds of layer share no typed interface.)"""
    return self_attention_cache(cache).layers


def grow_in_place(cache: Any) -> None:
    """Turn the plain full-attention layers of ``cache`` into :class:`GrowingLayer`, content kept, object kept.

    Layers of other kinds (static, quantised, recurrent, sliding) and offloaded caches stay as they are.
    """
    cache = self_attention_cache(cache)
    if getattr(cache, "offloading", False):
        return
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            grown = GrowingLayer()
            grown.__dict__.update(layer.__dict__)
            cache.layers[index] = grown


def make_room_to_look_ahead(cache: Any, model: Any) -> None:
    """Give an empty static cache one more slot: greedy search, for which it is sized, never reads the last token."""
    inner = self_attention_cache(cache)
    if isinstance(inner, StaticCache) and not getattr(cache, "_is_user_defined", False):
        inner.layers = StaticCache(config=model.config, max_cache_len=inner.get_max_length() + 1).layers


def is_recurrent(cache: Any) -> bool:
    """Whether some layer keeps a recurrent state. Such models read a prompt at once, but after it one token at a time:
    given several, they answer wrongly (Mamba in transformers 5.23).
    """
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers_of(cache))


def is_sliding(layer: object) -> bool:
    """Whether a cache layer keeps only a window of the last tokens."""
    return type(layer) is DynamicSlidingWindowLayer
