"""Branching by forked rows: every row is repeated once per branch.

Works wherever a cache can be reordered, recurrent states included.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decoding.cache.growing import GrowingLayer, is_recurrent, layers_of
from decoding.stream.output import ForwardOutput, branched, joined, picked, reordered
from decoding.transformers_private import expand_inputs

if TYPE_CHECKING:
    from decoding.stream.stream import Stream

__all__ = ["ForkedBranches", "of_branches", "repeated"]


class ForkedBranches:
    """Rows repeated once per branch, also between steps: only what the winner added is copied to its siblings."""

    def __init__(self, stream: Stream, branches: int) -> None:
        self.stream = stream
        self.branches = branches
        self.stream.cache.reorder_cache(self._rows().repeat_interleave(branches))
        self.saved: dict[int, Any] = {}

    def read(self, tokens: Tensor) -> None:
        """Read (batch, branches, n) tokens."""
        stream, n = self.stream, tokens.shape[2]
        self.tokens = tokens
        layers = layers_of(stream.cache)
        if stream.restorable:
            self.saved = {i: copy.deepcopy(each) for i, each in enumerate(layers) if not isinstance(each, GrowingLayer)}
        self.kwargs = stream.grown_kwargs(n)
        flat = tokens.flatten(0, 1)  # (batch·branches, n)
        ends = range(1, n + 1) if is_recurrent(stream.cache) else [n]
        starts = [0, *ends][:-1]
        self.flat = joined([self._read(flat, start, end) for start, end in zip(starts, ends, strict=True)])
        self.reading = branched(self.flat, 0, (-1, self.branches))

    def _read(self, flat: Tensor, start: int, end: int) -> ForwardOutput:
        """One forward pass over tokens ``start`` to ``end`` of every branch; ``hidden`` is (batch·branches, n, dim)."""
        stream = self.stream
        ids, kwargs = repeated(stream, stream.grown_kwargs(end), self.branches)
        ids = torch.cat([ids, flat[:, :end]], dim=1)
        inputs = stream.model.prepare_inputs_for_generation(ids, next_sequence_length=end - start, **kwargs)
        return stream.run(inputs, every_logit=True)

    def keep(self, branch: Tensor) -> ForwardOutput:
        """Give every sibling what the kept branch added."""
        winners = self._rows() * self.branches + branch  # (batch,)
        for layer in layers_of(self.stream.cache):
            if isinstance(layer, GrowingLayer):
                if not layer.is_initialized:  # a cross-attention layer of a text model that was given no image
                    continue
                n = self.tokens.shape[2]
                for entries in (layer.keys, layer.values):
                    siblings = entries.unflatten(0, (-1, self.branches))  # (batch, branches, heads, slots, dim)
                    siblings[..., -n:, :] = entries[winners.to(entries.device), None, :, -n:]
            else:
                layer.reorder_cache(winners.repeat_interleave(self.branches))
        return picked(self.flat, winners)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        every = of_branches(rows, self.branches)
        self.stream.cache.reorder_cache(every)
        self.saved = {}
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, every)

    def drop(self) -> None:
        """Forget all branches. States that no index can move back are restored where the stream is restorable."""
        layers = layers_of(self.stream.cache)
        for i, layer in enumerate(layers):
            if isinstance(layer, GrowingLayer):
                layer.crop(-self.tokens.shape[2])
            elif i in self.saved:
                layers[i] = self.saved[i]
            # else: the call ends here and its cache with it

    def collapse(self) -> None:
        """One row per row again; all siblings are alike, so the first is kept."""
        self.stream.cache.reorder_cache(self._rows() * self.branches)

    def _rows(self) -> Tensor:
        return torch.arange(self.stream.batch, device=self.stream.input_ids.device)


def repeated(stream: Stream, kwargs: dict[str, Any], branches: int) -> tuple[Tensor, dict[str, Any]]:
    """A stream's tokens and keyword arguments with each row repeated once per branch; the cache is left as it is."""
    if kwargs.get("encoder_outputs") is not None:
        kwargs = kwargs | {"encoder_outputs": copy.copy(kwargs["encoder_outputs"])}  # transformers expands it in place
    return expand_inputs(stream.model, stream.input_ids, kwargs, branches)


def of_branches(rows: Tensor, branches: int) -> Tensor:
    """(batch·branches,) where all branches of (batch,) rows stand, each row repeated once per branch."""
    return (rows[:, None] * branches + torch.arange(branches, device=rows.device)).flatten()
