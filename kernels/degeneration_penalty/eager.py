"""The degeneration penalty in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["degeneration_penalty_eager"]

# Half-precision history is widened to float32 this many slots at a time, so that no float32 copy of it ever exists
# whole.
CHUNK = 2048


def degeneration_penalty_eager(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
) -> Tensor:
    """See :func:`decoding.kernels.degeneration_penalty.degeneration_penalty`."""
    end = history.shape[1] if length is None else length if isinstance(length, int) else int(length.max())
    row_ends = length if isinstance(length, Tensor) else None
    directions = candidates.float()
    norms = torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    directions = torch.where(norms > 0, directions / norms, 0.0)  # (batch, k, dim)
    step = end if history.dtype == torch.float32 else CHUNK
    best = directions.new_full(directions.shape[:2], float("-inf"))
    for low in range(0, end, max(step, 1)):
        high = min(low + step, end)
        cosines = torch.bmm(directions, history[:, low:high].float().transpose(1, 2))  # (batch, k, slots)
        cosines *= history_inverse_norms[:, None, low:high]
        outside = _outside(low, high, start, row_ends, cosines.device)
        if outside is not None:
            cosines = cosines.masked_fill(outside[:, None], float("-inf"))
        best = torch.maximum(best, cosines.amax(-1))
    return torch.where(best == float("-inf"), 0.0, best)


def _outside(low: int, high: int, start: Tensor | None, row_ends: Tensor | None, device: torch.device) -> Tensor | None:
    if start is None and row_ends is None:
        return None
    slots = torch.arange(low, high, device=device)
    outside = torch.zeros(1, high - low, dtype=torch.bool, device=device)
    if start is not None:
        outside = outside | (slots < start.to(device)[:, None])
    if row_ends is not None:
        outside = outside | (slots >= row_ends.to(device)[:, None])
    return outside
