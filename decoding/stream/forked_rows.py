"""Branching by forked rows: every row is repeated once per branch.

Works wherever a cache can be reordered, recurrent states included.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from decoding.cache.growing import layers_of
from decoding.cache.layer_kinds import is_recurrent, kind_of
from decoding.stream.output import ForwardOutput, joined, picked, reordered, split_branches
from decoding.stream.state import BatchState
from decoding.transformers_private import expand_inputs

__all__ = ["ForkedBranches", "rows_of_branches", "with_forked_rows"]


class ForkedBranches:
    """Rows repeated once per branch, also between steps: only what the kept branch added is copied to its siblings.

    Attributes:
        tokens: (batch, branches, n) token ids that were read last.
        kwargs: the model's keyword arguments once one branch is kept.
        output: of the branches; ``hidden`` is (batch, branches, n, dim).
    """

    tokens: Tensor
    kwargs: dict[str, Any]
    output: ForwardOutput

    def __init__(self, state: BatchState, branches: int) -> None:
        self.state = state
        self.branches = branches
        self.state.cache.reorder_cache(self._rows().repeat_interleave(branches))
        self.snapshots: dict[int, Any] = {}  # by layer, where the stream is restorable

    def read(self, tokens: Tensor) -> None:
        """Read (batch, branches, n) tokens."""
        state, n = self.state, tokens.shape[2]
        self.tokens = tokens
        if state.restorable:
            self.snapshots = {i: kind_of(layer).snapshot(layer) for i, layer in enumerate(layers_of(state.cache))}
        self.kwargs = state.grown_kwargs(n)
        flat = tokens.flatten(0, 1)  # (batch·branches, n)
        ends = range(1, n + 1) if is_recurrent(state.cache) else [n]
        starts = [0, *ends][:-1]
        self.flat = joined([self._forward(flat, start, end) for start, end in zip(starts, ends, strict=True)])
        self.output = split_branches(self.flat, 0, (-1, self.branches))

    def _forward(self, flat: Tensor, start: int, end: int) -> ForwardOutput:
        """One forward pass over tokens ``start`` to ``end`` of every branch; ``hidden`` is (batch·branches, n, dim)."""
        state = self.state
        ids, kwargs = with_forked_rows(state, state.grown_kwargs(end), self.branches)
        ids = torch.cat([ids, flat[:, :end]], dim=1)
        inputs = state.model.prepare_inputs_for_generation(ids, next_sequence_length=end - start, **kwargs)
        return state.run(inputs, every_logit=True)

    def keep(self, branch: Tensor) -> ForwardOutput:
        """Give every sibling what the kept branch added."""
        winners = self._rows() * self.branches + branch  # (batch,)
        for layer in layers_of(self.state.cache):
            kind_of(layer).keep_fork(layer, winners, self.branches, self.tokens.shape[2])
        return picked(self.flat, winners)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        forked = rows_of_branches(rows, self.branches)
        self.state.cache.reorder_cache(forked)
        self.snapshots = {}
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, forked)

    def drop(self) -> None:
        """Forget all branches. States that no index can move back are restored where the stream is restorable."""
        layers = layers_of(self.state.cache)
        for i, layer in enumerate(layers):
            layers[i] = kind_of(layer).drop_fork(layer, self.tokens.shape[2], self.snapshots.get(i))

    def collapse(self) -> None:
        """Bring the cache back to one row per row; all siblings are alike, so the first is kept."""
        self.state.cache.reorder_cache(self._rows() * self.branches)

    def _rows(self) -> Tensor:
        return torch.arange(self.state.batch, device=self.state.input_ids.device)


def with_forked_rows(state: BatchState, kwargs: dict[str, Any], branches: int) -> tuple[Tensor, dict[str, Any]]:
    """A stream's tokens and keyword arguments with each row repeated once per branch; the cache is left as it is."""
    if kwargs.get("encoder_outputs") is not None:
        kwargs = kwargs | {"encoder_outputs": copy.copy(kwargs["encoder_outputs"])}  # transformers expands it in place
    return expand_inputs(state.model, state.input_ids, kwargs, branches)


def rows_of_branches(rows: Tensor, branches: int) -> Tensor:
    """(batch·branches,) the rows of all branches of (batch,) rows, each row repeated once per branch."""
    return (rows[:, None] * branches + torch.arange(branches, device=rows.device)).flatten()
