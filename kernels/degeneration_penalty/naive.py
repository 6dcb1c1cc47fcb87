"""The degeneration penalty as the formula has it: the oracle of every other form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["degeneration_penalty_naive"]


def degeneration_penalty_naive(
    candidates: Tensor, history: Tensor, start: Tensor | None = None, length: int | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The largest cosine and the first slot that has it, one pair at a time in float64; see
    :func:`degeneration_penalty` for the shapes.
    """
    batch, k, _ = candidates.shape
    starts = [0] * batch if start is None else start.tolist()
    if length is None:
        ends = [history.shape[1]] * batch
    else:
        ends = [length] * batch if isinstance(length, int) else length.tolist()
    penalty = torch.zeros(batch, k, dtype=torch.float32)
    repeated = torch.full((batch, k), -1)
    for b in range(batch):
        for v in range(k):
            cosines = [_cosine(candidates[b, v].double(), history[b, j].double()) for j in range(starts[b], ends[b])]
            if cosines:
                penalty[b, v] = max(cosines)
                repeated[b, v] = starts[b] + cosines.index(max(cosines))
    return penalty, repeated


def _cosine(x: Tensor, y: Tensor) -> float:
    norms = float(x.norm() * y.norm())
    return float(x @ y) / norms if norms > 0 else 0.0
