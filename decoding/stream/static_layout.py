"""Keys, values, masks and inputs at addresses and in shapes that do not change from one token to the next.

A CUDA graph replays kernels on the addresses that they were captured with, so everything that a step reads or writes
is here: storage for all the tokens of a call, and the next slot as a number on the device. A step attends to the first
``bucket`` slots, and the mask hides those that are not written yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from decoding.stream.tree_mask import branch_relations
from decoding.transformers_private import CACHE_ARGUMENT

__all__ = ["BranchStep", "LayerShape", "RowStep", "StaticLayout", "StaticStep", "bucket_of"]

# Attention reads a whole bucket, and each bucket is a capture of its own. Ends lie 256 slots apart, from 4096 on an
# eighth of the power of two below: at most 255 slots or 12.5% too many are read, on average half of that (64 MB of a 7B
# model without grouped queries in bfloat16, beside its 14 GB of weights), and a text of 8k tokens meets 24 buckets.
BUCKET = 256


def bucket_of(length: int) -> int:
    """The end of the bucket that ``length`` slots fall in."""
    width = max(BUCKET, (1 << max(length - 1, 1).bit_length() - 1) // 8)
    return -(-length // width) * width


@dataclass(frozen=True)
class LayerShape:
    """The shape of one token in a cache layer.

    Attributes:
        keys: (heads, head dim, dtype).
        values: likewise.
        window: number of slots that a token attends back, itself included; None for all.
    """

    keys: tuple[int, int, torch.dtype]
    values: tuple[int, int, torch.dtype]
    window: int | None


class StaticLayout:
    """Static storage for one batch of rows, and the steps that run on it.

    Layers with a window keep every token too: their mask hides what has left the window.

    Args:
        layers: of the model's cache.
        batch: rows.
        capacity: slots a row.
        device: of the model.
        state: of the model, as its graphs are captured with it.

    Attributes:
        storage: of each layer, keys and values (batch, heads, capacity, head dim).
        present: (batch, capacity) False where a slot holds padding.
        length: (1,) number of slots that are read and kept, on the device.
        steps: those made so far, by what sets them apart.
        capture: the CUDA stream and memory pool that its graphs share; None before the first.
    """

    def __init__(
        self, layers: Sequence[LayerShape], batch: int, capacity: int, device: torch.device, state: Any = None
    ) -> None:
        self.layers, self.batch, self.capacity, self.device, self.state = tuple(layers), batch, capacity, device, state
        with torch.inference_mode(False):  # what is made in inference mode may not be written to outside it
            # Zeros: a slot that was never written weighs nothing, but nothing times NaN is NaN.
            self._stacks = {
                kind: torch.zeros((count, batch, kind[0], capacity, kind[1]), dtype=kind[2], device=device)
                for kind, count in Counter(kind for layer in layers for kind in (layer.keys, layer.values)).items()
            }
            self.present = torch.ones((batch, capacity), dtype=torch.bool, device=device)
            self.length = torch.zeros(1, dtype=torch.long, device=device)
            of_kind = {kind: iter(stack) for kind, stack in self._stacks.items()}
            self.storage = [(next(of_kind[layer.keys]), next(of_kind[layer.values])) for layer in layers]
        self._place = _Place()
        self._cache = Cache(layers=[_StaticLayer(keys, values, self._place) for keys, values in self.storage])
        self.steps: dict[Any, StaticStep] = {}
        self.capture: Any = None  # CUDA stream and memory pool of its graphs

    def cache_at(self, slots: Tensor, bucket: int) -> Cache:
        """The cache for a forward pass that attends to the first ``bucket`` slots.

        Args:
            slots: where the pass writes: (n,) in every row, or (batch, n).
            bucket: number of slots.
        """
        self._place.slots, self._place.bucket = slots, bucket
        return self._cache

    def keep(self, start: int, num_branch_tokens: int, slots: Tensor) -> None:
        """Write each row's kept slots (batch, n) over the first n of the ``num_branch_tokens`` from ``start`` on."""
        for stack in self._stacks.values():
            last = stack.narrow(3, start, num_branch_tokens)  # (layers, batch, heads, looked_at, head dim)
            index = slots[None, :, None, :, None].expand(len(stack), -1, stack.shape[2], -1, stack.shape[4])
            last.narrow(3, 0, slots.shape[1]).copy_(last.gather(3, index))

    def clear(self) -> None:
        """Forget the content; what is not a number must not outlive its text."""
        for stack in self._stacks.values():
            stack.zero_()


class StaticStep(ABC):
    """The inputs of a forward pass over n tokens a row.

    Args:
        layout: what it runs on.
        n: tokens of a row.
        bucket: number of the layout's slots that it attends to.
        dtype: of the hidden states, and so of the mask.
        layer_types: of the model's config, for models that take a mask for each type.

    Attributes:
        tokens: (batch, n), written before the pass.
        positions: likewise.
        graph: the captured pass, once there is one.
    """

    def __init__(
        self, layout: StaticLayout, n: int, bucket: int, dtype: torch.dtype, layer_types: Sequence[str] | None
    ) -> None:
        self.bucket, self.dtype = bucket, dtype
        self.graph: Any = None
        self.windows = {layer.window for layer in layout.layers}
        self.window_of = dict(zip(layer_types or (), (layer.window for layer in layout.layers), strict=False))
        with torch.inference_mode(False):
            self.tokens = torch.zeros((layout.batch, n), dtype=torch.long, device=layout.device)
            self.positions = torch.zeros_like(self.tokens)
            self.every_slot = torch.arange(bucket, device=layout.device)

    def inputs(self, layout: StaticLayout) -> dict[str, Any]:
        """Inputs of the model's forward, made on the device alone."""
        slots = self._written_slots(layout)
        masks = self._masks(layout, slots)
        whole = next(iter(masks.values()))
        return {
            "input_ids": self.tokens,
            "position_ids": self.positions,
            "attention_mask": whole if len(masks) == 1 else {t: masks[w] for t, w in self.window_of.items()},
            CACHE_ARGUMENT: layout.cache_at(slots, self.bucket),
            "use_cache": True,
        }

    @abstractmethod
    def _written_slots(self, layout: StaticLayout) -> Tensor:
        """Where the tokens' keys and values go: (n,) in every row, or (batch, n)."""

    @abstractmethod
    def _masks(self, layout: StaticLayout, slots: Tensor) -> dict[int | None, Tensor]:
        """By window, the additive (batch, 1, n, bucket): 0 where a token may look, the dtype's minimum elsewhere."""

    def _hiding(self, layout: StaticLayout, hidden: Tensor) -> Tensor:
        """The additive mask of what is hidden, which can be expanded to (batch, 1, n, bucket)."""
        mask = torch.zeros((*self.tokens.shape, self.bucket), dtype=self.dtype, device=layout.device)[:, None]
        return mask.masked_fill_(hidden, torch.finfo(self.dtype).min)


class BranchStep(StaticStep):
    """A pass over ``branches`` times ``n`` tokens a row, all of which follow the layout's length.

    Args:
        layout: see :class:`StaticStep`.
        branches: alternatives a row, side by side.
        n: tokens of each.
        bucket: see :class:`StaticStep`.
        dtype: likewise.
        layer_types: likewise.
    """

    def __init__(
        self,
        layout: StaticLayout,
        branches: int,
        n: int,
        bucket: int,
        dtype: torch.dtype,
        layer_types: Sequence[str] | None,
    ) -> None:
        super().__init__(layout, branches * n, bucket, dtype, layer_types)
        device = layout.device
        with torch.inference_mode(False):
            self.slots = torch.arange(branches * n, device=device)  # after the prefix
            # Copies, since a graph goes on reading them where a table that others share may be dropped.
            self.relations = {
                window: branch_relations(branches, n, window, dtype, device)[0].clone() for window in self.windows
            }
            self.depths = branch_relations(branches, n, None, dtype, device)[
                1
            ].clone()  # (branches·n,) of each token in its branch

    def _written_slots(self, layout: StaticLayout) -> Tensor:
        return layout.length + self.slots

    def _masks(self, layout: StaticLayout, slots: Tensor) -> dict[int | None, Tensor]:
        prefix = layout.present[:, : self.bucket] & (self.every_slot < layout.length)  # (batch, bucket)
        masks = {}
        for window in self.windows:
            visible = prefix[:, None, None]
            if window is not None:
                age = (layout.length + self.depths)[:, None] - self.every_slot  # (branches·n, bucket)
                visible = visible & (age < window)
            relations = self.relations[window].expand(layout.batch, 1, -1, -1)
            masks[window] = self._hiding(layout, ~visible).index_copy_(3, slots, relations)
        return masks


class RowStep(StaticStep):
    """A pass over n tokens of each row, whose rows have lengths of their own.

    Attributes:
        slots: (batch, n) where keys and values go, written before the pass.
        places: likewise, how many slots of its row each token follows: it attends to these and to its own.
    """

    def __init__(
        self, layout: StaticLayout, n: int, bucket: int, dtype: torch.dtype, layer_types: Sequence[str] | None
    ) -> None:
        super().__init__(layout, n, bucket, dtype, layer_types)
        with torch.inference_mode(False):
            self.slots, self.places = torch.zeros_like(self.tokens), torch.zeros_like(self.tokens)

    def _written_slots(self, layout: StaticLayout) -> Tensor:
        return self.slots

    def _masks(self, layout: StaticLayout, slots: Tensor) -> dict[int | None, Tensor]:
        own, places = self.every_slot == slots[:, :, None], self.places[:, :, None]  # (batch, n, bucket)
        before = (self.every_slot < places) & layout.present[:, None, : self.bucket]
        masks = {}
        for window in self.windows:
            seen = before if window is None else before & (places - self.every_slot < window)
            masks[window] = self._hiding(layout, ~(seen | own)[:, None])
        return masks


@dataclass
class _Place:
    """The slots that the running or captured pass writes, and the bucket that it attends to."""

    slots: Tensor | None = None
    bucket: int = 0


class _StaticLayer(CacheLayerMixin):
    """One layer of a static layout, as a model's attention sees it.

    Its length is no news to a captured pass, so it tells one number at every step: models that need the true one are
    found out by the check in ``capturable``, on a CPU as well.
    """

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, place: _Place) -> None:
        super().__init__()
        self.keys, self.values, self._place = keys, values, place
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write (batch, heads, n, head dim) keys and values; return the bucket."""
        assert self.keys is not None
        assert self.values is not None
        slots = self._place.slots
        assert slots is not None
        for storage, states in ((self.keys, key_states), (self.values, value_states)):
            if slots.dim() == 1:
                storage.index_copy_(2, slots, states)
            else:
                storage.scatter_(2, slots[:, None, :, None].expand_as(states), states)
        return self.keys.narrow(2, 0, self._place.bucket), self.values.narrow(2, 0, self._place.bucket)

    def get_seq_length(self) -> int:
        """The bucket without the tokens that are read."""
        return self.get_max_length() - (0 if self._place.slots is None else self._place.slots.shape[-1])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The bucket, from its first slot on."""
        return self.get_max_length(), 0

    def get_max_length(self) -> int:
        """The bucket."""
        return self._place.bucket
