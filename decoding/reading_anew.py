"""Branching without a cache: every branch is read from its first token.

Right for every model whose tokens do not look ahead, and dear: a step costs as much as reading the whole text once a
branch. It is for models that keep no cache, or answer otherwise from it, and for ``use_cache=False``.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decoding.forked_rows import repeated
from decoding.reading import Reading, branched, picked, reordered

if TYPE_CHECKING:
    from decoding.stream import Stream

__all__ = ["ReadAnew", "read_anew"]


class ReadAnew:
    """Branches as rows, each read whole."""

    def __init__(self, stream: Stream, tokens: Tensor) -> None:
        self.tokens = tokens  # (batch, branches, n)
        _, self.branches, n = tokens.shape
        self.kwargs = stream.grown_kwargs(n)
        ids, kwargs = repeated(stream, self.kwargs, self.branches)
        self.flat = read_anew(stream, torch.cat([ids, tokens.flatten(0, 1)], dim=1), kwargs, n)
        self.reading = branched(self.flat, 0, (-1, self.branches))

    def keep(self, branch: Tensor) -> Reading:
        """The reading of the kept branch."""
        rows = torch.arange(len(branch), device=branch.device)
        return picked(self.flat, rows * self.branches + branch)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        every = (rows[:, None] * self.branches + torch.arange(self.branches, device=rows.device)).flatten()
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, every)

    def drop(self) -> None:
        """Forget all branches, of which nothing was kept."""


def read_anew(stream: Stream, ids: Tensor, kwargs: dict[str, Any], n: int) -> Reading:
    """The reading of the last n tokens of whole texts (rows, length) that go with these keyword arguments."""
    whole = stream.run(stream.model.prepare_inputs_for_generation(ids, **kwargs), every_logit=n > 1)
    last = copy.copy(
        whole
    )  # layers' states and attentions, where asked for, are of the whole text, as transformers has it
    last.hidden = whole.hidden[:, -n:].clone()  # not a view, which would hold on to the whole
    last.exits = tuple(states[:, -n:].clone() for states in whole.exits)
    last.logits = None if whole.logits is None else whole.logits[:, -n:].clone()
    return last
