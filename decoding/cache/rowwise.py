"""Cache layers whose rows have lengths of their own: what a row forgets or adds moves no other row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from decoding.cache.growing import GrowingLayer, self_attention_cache

__all__ = ["RowwiseLayer", "join_rows", "separate_rows"]


class RowwiseLayer(GrowingLayer):
    """One layer of a cache, (batch, heads, length, head dim), each of whose rows is written at its own end.

    It is as long as its longest row. Slots behind the end of a shorter row hold zeros or what that row has forgotten:
    attention must be masked from them. A layer with a window keeps what has left it, so that rows can go back.

    Args:
        layer: whose content it takes over.

    Attributes:
        window: the number of slots that a token attends back, itself included; None for all.
        offset: the first slot that it holds; what was before it had left the window already.
    """

    def __init__(self, layer: GrowingLayer | DynamicSlidingWindowLayer) -> None:
        super().__init__()
        self.replaced = layer
        self.window: int | None = None
        self.offset = 0
        self._slots: Tensor | None = None  # (batch, n)
        self._width = 0
        if isinstance(layer, GrowingLayer):
            self.expected = layer.expected
            keys, values = layer._keys, layer._values
        else:
            self.window = int(layer.sliding_window)
            keys, values = layer.keys, layer.values
        if not layer.is_initialized or keys is None or values is None:
            return
        self.lazy_initialization(keys, values)
        length = layer.length if isinstance(layer, GrowingLayer) else keys.shape[2]
        self._keys, self._values = keys, values
        self.length = self._values_length = length
        self.offset = layer.get_seq_length() - length
        if torch.is_inference_mode_enabled() or not keys.is_inference():
            self._clear_spare()

    def write_next_at(self, slots: Tensor, width: int) -> None:
        """Tell where the next :meth:`update` writes.

        Args:
            slots: (batch, n), counted from the first token of the text.
            width: slots of the longest row afterwards.
        """
        self._slots, self._width = slots, width

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write (batch, heads, n, head dim) keys and values at the slots told; return all that are held."""
        assert self._slots is not None, "update() without write_next_at()"
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots, self._slots = self._slots, None
        keys, values = self._reserve(self._width - self.offset)
        self.length = self._values_length = self._width - self.offset
        if len(slots) == 1:
            n = slots.shape[1]
            keys.narrow(2, self.length - n, n).copy_(key_states)
            values.narrow(2, self.length - n, n).copy_(value_states)
        else:
            index = (slots.to(keys.device) - self.offset)[:, None, :, None]
            keys.scatter_(2, index.expand_as(key_states), key_states)
            values.scatter_(2, index.expand_as(value_states), value_states)
        return self.keys, self.values

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy one slot of each row to another.

        Args:
            sources: slots, which may lie behind the end: what was forgotten last is still there.
            targets: slots.
            length: slots of the longest row afterwards.
        """
        if not self.is_initialized:
            return
        for storage in (self._keys, self._values):
            assert storage is not None
            for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
                if source != target:
                    storage[row, :, target - self.offset] = storage[row, :, source - self.offset]
        self.length = self._values_length = length - self.offset

    def be_as_long_as(self, length: int) -> None:
        """Have so many slots of the longest row, whatever was written last."""
        if self.is_initialized:
            self._reserve(length - self.offset)
            self.length = self._values_length = length - self.offset

    def clear_behind(self, lengths: Sequence[int]) -> None:
        """Zero what is behind the first ``lengths[i]`` slots of row i."""
        if not self.is_initialized:
            return
        for storage in (self._keys, self._values):
            assert storage is not None
            for row, length in enumerate(lengths):
                storage[row, :, max(length - self.offset, 0) :].zero_()

    def get_seq_length(self) -> int:
        """The number of tokens of the longest row, those included that had left the window before."""
        return self.offset + self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of slots that attention sees, and the first of them."""
        return self.length + query_length, self.offset

    def joined(self) -> Any:
        """A layer of the kind that it has replaced, with its content; all rows must have the same length."""
        layer = self.replaced
        if not self.is_initialized:
            return layer
        if isinstance(layer, GrowingLayer):
            layer.lazy_initialization(self.keys, self.values)
            layer.keys, layer.values = self.keys, self.values
            return layer
        assert self.window is not None
        layer.lazy_initialization(self.keys, self.values)
        layer.keys = self.keys[:, :, -self.window + 1 :].clone()
        layer.values = self.values[:, :, -self.window + 1 :].clone()
        layer.cumulative_length = self.get_seq_length()
        layer.record_past = False
        return layer

    def _reserve(self, end: int) -> tuple[Tensor, Tensor]:
        before = self._keys
        storage = super()._reserve(end)
        if self._keys is not before:
            self._clear_spare()
        return storage

    def _clear_spare(self) -> None:
        """Zero what is not written: a masked slot has no weight, but no weight times NaN is NaN."""
        for storage in (self._keys, self._values):
            assert storage is not None
            storage[:, :, self.length :].zero_()


def separate_rows(cache: Any) -> None:
    """Give every layer of a cache rows with lengths of their own; layers that hold nothing stay as they are.

    The cache must allow branches after one prefix (:func:`decoding.cache.layer_kinds.can_share_prefix`).
    """
    inner = self_attention_cache(cache)
    for index, layer in enumerate(inner.layers):
        if isinstance(layer, (GrowingLayer, DynamicSlidingWindowLayer)):
            inner.layers[index] = RowwiseLayer(layer)


def join_rows(cache: Any) -> None:
    """Undo :func:`separate_rows`; all rows must have the same length."""
    inner = self_attention_cache(cache)
    inner.layers = [layer.joined() if isinstance(layer, RowwiseLayer) else layer for layer in inner.layers]
