"""The degeneration penalty as the formula defines it: the oracle of the other forms."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["degeneration_penalty_naive"]


def degeneration_penalty_naive(
    candidates: Tensor, history: Tensor, start: Tensor | None = None, length: int | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute :func:`decoding.kernels.degeneration_penalty.degeneration_penalty`, one pair at a time in float64.

    Returns:
        Penalties (batch, k) float32, and the first slots that have them, (batch, k) int64.
    """
    batch, k, _ = candidates.shape
    starts = [0] * batch if start is None else start.tolist()
    if length is None:
        ends = [history.shape[1]] * batch
    else:
        ends = [length] * batch if isinstance(length, int) else length.tolist()
    penalty = torch.zeros(batch, k, dtype=torch.float32)
    slots = torch.full((batch, k), -1)
    for b in range(batch):
        for v in range(k):
            cosines = [_cosine(candidates[b, v].double(), history[b, j].double()) for j in range(starts[b], ends[b])]
            if cosines:
                penalty[b, v] = max(cosines)
                slots[b, v] = starts[b] + cosines.index(max(cosines))
    return penalty, slots


def _cosine(x: Tensor, y: Tensor) -> float:
    norms = float(x.norm() * y.norm())
    return float(x @ y) / norms if norms > 0 else 0.0
