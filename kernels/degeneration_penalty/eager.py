"""The degeneration penalty in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["append_eager", "degeneration_penalty_eager", "inverse_norms"]

# Half-precision history is widened to float32 this many slots at a time, so that a whole float32 copy never exists.
CHUNK_SIZE = 2048


def degeneration_penalty_eager(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    positions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`decoding.kernels.degeneration_penalty.degeneration_penalty`: penalties, and slots or None."""
    end = history.shape[1] if length is None else length if isinstance(length, int) else int(length.max())
    if end == 0:
        no_slots = torch.full(candidates.shape[:2], -1, device=candidates.device) if positions else None
        return candidates.new_zeros(candidates.shape[:2], dtype=torch.float32), no_slots
    row_ends = length if isinstance(length, Tensor) else None
    # History times candidates, as if these were weights: for the 4 columns of contrastive search a CPU's two cores
    # share this product, and leave the transposed one to one of them (32k slots of 256: 1.2 against 3.3 ms; 16k: 0.56
    # against 1.4).
    directions = candidates.float().transpose(1, 2)
    step = end if history.dtype == torch.float32 else CHUNK_SIZE
    chunk_maxima, chunk_slots = [], []
    for first in range(0, end, step):
        last = min(first + step, end)
        products = torch.bmm(history[:, first:last].float(), directions).transpose(1, 2)  # (batch, k, slots)
        # A candidate's slots must be contiguous: then 16 are compared at a time (32k of them: 0.03 against 0.33 ms).
        cosines = (products * history_inverse_norms[:, None, first:last]).contiguous()
        outside = _outside(first, last, start, row_ends, cosines.device)
        if outside is not None:
            cosines = cosines.masked_fill(outside[:, None], -torch.inf)
        chunk_maxima.append(cosines.amax(2))
        if positions:
            chunk_slots.append(first + cosines.argmax(2))
    penalty = chunk_maxima[0] if len(chunk_maxima) == 1 else torch.stack(chunk_maxima).amax(0)
    slots = None
    if positions:
        chunk = torch.stack(chunk_maxima).argmax(0, keepdim=True)
        slots = torch.stack(chunk_slots).gather(0, chunk)[0].masked_fill(penalty == -torch.inf, -1)
    if start is not None or row_ends is not None:
        penalty = torch.where(penalty == -torch.inf, 0.0, penalty)  # a row without history
    # The candidate's norm is the same for every slot: one division a candidate, after the maximum.
    return penalty * inverse_norms(candidates), slots


def append_eager(history: Tensor, history_inverse_norms: Tensor, hidden: Tensor, at: int) -> None:
    """Write hidden states and their inverse norms in place: :func:`decoding.kernels.degeneration_penalty.append`."""
    n = hidden.shape[1]
    history.narrow(1, at, n).copy_(hidden)
    history_inverse_norms.narrow(1, at, n).copy_(inverse_norms(hidden))


def inverse_norms(states: Tensor) -> Tensor:
    """Compute 1 / norm over the last dimension, float32; 0 for zero vectors, so that their cosines are 0, never NaN."""
    states = states.float() if states.dtype == torch.float64 else states  # vector_norm casts to wider dtypes only
    norms = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)
    return torch.where(norms > 0, 1.0 / norms, 0.0)


def _outside(
    first: int, last: int, start: Tensor | None, row_ends: Tensor | None, device: torch.device
) -> Tensor | None:
    """Find the slots from ``first`` to ``last`` that do not count, (batch or 1, slots) bool; None if all count."""
    if start is None and row_ends is None:
        return None
    slots = torch.arange(first, last, device=device)
    outside = torch.zeros(1, last - first, dtype=torch.bool, device=device)
    if start is not None:
        outside = outside | (slots < start.to(device)[:, None])
    if row_ends is not None:
        outside = outside | (slots >= row_ends.to(device)[:, None])
    return outside
