"""The kinds of cache layers, and how each is branched: one adapter a kind.

Code that branches asks :func:`kind_of` for a layer's adapter and never for the layer's class.

| kind | layers | branches |
|---|---|---|
| ``InPlace`` | ``GrowingLayer``, ``RowwiseLayer`` | after a shared prefix, or forked; moved by an index |
| ``Sliding`` | transformers' ``DynamicSlidingWindowLayer`` | after a shared prefix, its past recorded; or forked |
| ``Empty`` | transformers' ``DummyLayer``: layers without a cache of their own | nothing to do |
| ``Quantised`` | of a ``QuantizedCache`` | after a shared prefix, read by copies |
| ``Recurrent`` | linear attention, state-space layers, ``StateLayer`` | forked; one token a pass |
| ``Reordered`` | everything else (static, offloaded, ...) | forked |
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from decoding.cache.growing import GrowingLayer, layers_of
from decoding.cache.rowwise import RowwiseLayer
from decoding.transformers_private import DummyLayer, QuantisedLayer

__all__ = ["LayerKind", "can_share_prefix", "gather_index", "has_window", "is_recurrent", "kind_of"]


class LayerKind:
    """Branching of one kind of cache layer; the base is a layer that can only be reordered.

    ``slots`` counts tokens. Rows of branches stand together: row ``i·branches + j`` is branch j of row i.

    Attributes:
        can_share_prefix: True where branches may stand side by side after one prefix.
        one_token_a_pass: True where several tokens after the prompt must be read one by one.
    """

    can_share_prefix = False
    one_token_a_pass = False

    def has_mask(self, layer: Any) -> bool:
        """True where attention over the layer takes a mask."""
        return True

    def mask_window(self, layer: Any) -> int | None:
        """The number of slots that a token of the layer attends back, itself included; None for all."""
        return None

    # --- branches after a shared prefix -------------------------------------------------------------------------------

    def begin_branches(self, layer: Any) -> None:
        """Prepare for a pass over several branches or a tree of tokens."""

    def keep(self, layer: Any, num_branch_tokens: int, slots: Tensor, winners: list[int] | None) -> None:
        """Keep some of the last ``num_branch_tokens`` slots and forget the others.

        Args:
            layer: the cache layer.
            num_branch_tokens: slots that all branches of a row took together.
            slots: (batch, n) the kept branch's slots among them.
            winners: (batch,) the kept branch of each row, where these are known on the host; None otherwise.
        """
        raise NotImplementedError

    def end_branches(self, layer: Any) -> None:
        """Forget what was kept only for branches: a window drops what has left it."""

    def stop_branching(self, layer: Any) -> None:
        """Leave the layer as plain ``generate`` expects it."""

    # --- forked rows --------------------------------------------------------------------------------------------------

    def snapshot(self, layer: Any) -> Any:
        """A copy that :meth:`drop_fork` can restore; None where an index can move back."""
        return copy.deepcopy(layer)

    def keep_fork(self, layer: Any, winners: Tensor, branches: int, n: int) -> None:
        """Give every sibling of a row what its kept branch added.

        Args:
            layer: the cache layer, (batch·branches) rows.
            winners: (batch,) rows of the kept branches.
            branches: of each row.
            n: tokens that each branch has added.
        """
        layer.reorder_cache(winners.repeat_interleave(branches))

    def drop_fork(self, layer: Any, n: int, snapshot: Any) -> Any:
        """Forget the n tokens that every fork has added; returns the layer to go on with.

        Without a snapshot the layer stays as it is: the call ends here and its cache with it.
        """
        return layer if snapshot is None else snapshot


class InPlace(LayerKind):
    """Layers that are written in place: an index moves."""

    can_share_prefix = True

    def mask_window(self, layer: Any) -> int | None:
        """The window of a layer that keeps what has left it; None for all others."""
        return layer.window if isinstance(layer, RowwiseLayer) else None

    def keep(self, layer: Any, num_branch_tokens: int, slots: Tensor, winners: list[int] | None) -> None:
        """Move the kept branch's keys and values to the end of the prefix; see :meth:`LayerKind.keep`."""
        if not layer.is_initialized:  # of a model that was cut to fewer layers than its config counts
            return
        if winners is not None:
            layer.keep_branches(num_branch_tokens, winners, slots.shape[1])
        else:
            _gather_to_front(layer, num_branch_tokens, slots)

    def snapshot(self, layer: Any) -> None:
        """Nothing: see :meth:`drop_fork`."""

    def keep_fork(self, layer: Any, winners: Tensor, branches: int, n: int) -> None:
        """Copy only what the kept branch added; see :meth:`LayerKind.keep_fork`."""
        if not layer.is_initialized:  # a cross-attention layer of a text model that was given no image
            return
        for entries in (layer.keys, layer.values):
            siblings = entries.unflatten(0, (-1, branches))  # (batch, branches, heads, slots, dim)
            siblings[..., -n:, :] = entries[winners.to(entries.device), None, :, -n:]

    def drop_fork(self, layer: Any, n: int, snapshot: Any) -> Any:
        """Move the index back; see :meth:`LayerKind.drop_fork`."""
        layer.crop(-n)
        return layer


class Sliding(LayerKind):
    """Layers that keep a window of the last tokens."""

    can_share_prefix = True

    def mask_window(self, layer: Any) -> int | None:
        """The window; see :meth:`LayerKind.mask_window`."""
        return int(layer.sliding_window)

    def begin_branches(self, layer: Any) -> None:
        """Record the past: otherwise the window would drop prefix entries for the sake of losing branches."""
        layer.record_past = True

    def keep(self, layer: Any, num_branch_tokens: int, slots: Tensor, winners: list[int] | None) -> None:
        """Gather the kept branch's slots; see :meth:`LayerKind.keep`."""
        if layer.is_initialized:
            _gather_to_front(layer, num_branch_tokens, slots)

    def end_branches(self, layer: Any) -> None:
        """Cut the recorded past to the window."""
        if layer.record_past:
            layer.crop(0)

    def stop_branching(self, layer: Any) -> None:
        """Record no past any more."""
        layer.record_past = False


class Empty(LayerKind):
    """Layers that hold nothing."""

    can_share_prefix = True

    def has_mask(self, layer: Any) -> bool:
        """False: attention does not read it."""
        return False

    def keep(self, layer: Any, num_branch_tokens: int, slots: Tensor, winners: list[int] | None) -> None:
        """Do nothing."""


class Quantised(LayerKind):
    """Layers that hold keys and values in few bits; branches are read by copies, so nothing is kept or dropped here."""

    can_share_prefix = True

    def keep(self, layer: Any, num_branch_tokens: int, slots: Tensor, winners: list[int] | None) -> None:
        """Do nothing: the kept tokens are appended by :class:`decoding.stream.shared_prefix.SharedPrefixBranches`."""


class Recurrent(LayerKind):
    """Layers with a recurrent state. They read a prompt in one pass, but after it one token at a time: given several,
    they answer wrongly (Mamba in transformers 5.23).
    """

    one_token_a_pass = True


IN_PLACE, SLIDING, EMPTY, QUANTISED, RECURRENT, REORDERED = (
    InPlace(), Sliding(), Empty(), Quantised(), Recurrent(), LayerKind(),
)  # fmt: skip


def kind_of(layer: Any) -> LayerKind:
    """The adapter of a cache layer."""
    if isinstance(layer, GrowingLayer):
        return IN_PLACE
    if type(layer) is DynamicSlidingWindowLayer:
        return SLIDING
    if isinstance(layer, QuantisedLayer):
        return QUANTISED
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return RECURRENT
    if isinstance(layer, DummyLayer):
        return EMPTY
    return REORDERED


def is_recurrent(cache: Any) -> bool:
    """True where some layer of a cache keeps a recurrent state; see :class:`Recurrent`."""
    return any(kind_of(layer).one_token_a_pass for layer in layers_of(cache))


def has_window(cache: Any) -> bool:
    """True where some layer of a cache keeps a window of the last tokens only."""
    return any(kind_of(layer).mask_window(layer) is not None for layer in layers_of(cache))


def can_share_prefix(cache: Any) -> bool:
    """True where every layer of a cache allows branches after one prefix."""
    return all(kind_of(layer).can_share_prefix for layer in layers_of(cache))


def _gather_to_front(layer: Any, num_branch_tokens: int, slots: Tensor) -> None:
    """Write the slots (batch, n) of the last ``num_branch_tokens`` over the first of these, and forget the rest: one
    gather for all rows.
    """
    for entries in (layer.keys, layer.values):  # (batch, heads, slots, dim)
        last = entries.narrow(2, entries.shape[2] - num_branch_tokens, num_branch_tokens)
        last[:, :, : slots.shape[1]] = last.gather(2, gather_index(slots, entries))
    layer.crop(slots.shape[1] - num_branch_tokens)


def gather_index(slots: Tensor, entries: Tensor) -> Tensor:
    """The index that gathers slots (batch, n) from (batch, heads, slots, dim) along the slots."""
    return slots.to(entries.device)[:, None, :, None].expand(-1, entries.shape[1], -1, entries.shape[3])
