"""The hidden states that came before, kept for the degeneration penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.kernels.degeneration_penalty import append, degeneration_penalty
from decoding.kernels.selection import Selection, select

__all__ = ["HiddenHistory"]

BLOCK = 256  # as the cache grows


class HiddenHistory:
    """Raw hidden states in the model's dtype, with their float32 inverse norms; appended to in place.

    Rows end together at ``length``; row b begins at ``start[b]``, so left padding is never looked at.

    Args:
        hidden: (batch, length, dim) hidden states of the prompt.
        mask: (batch, length) 1 for tokens, 0 for padding anywhere; None where there is none.
    """

    def __init__(self, hidden: Tensor, mask: Tensor | None = None) -> None:
        batch, self.length, dim = hidden.shape
        self.start: Tensor | None = None  # (batch,)
        if mask is not None and not bool(mask.all()):
            order = (mask != 0).int().argsort(dim=1, stable=True)  # padding first, tokens behind in their order
            hidden = hidden.gather(1, order[:, :, None].expand_as(hidden))
            self.start = (mask == 0).sum(1)
        self.states = hidden.new_empty(batch, self.length + max(BLOCK, self.length // 16), dim)
        self.inverse_norms = torch.empty(self.states.shape[:2], dtype=torch.float32, device=hidden.device)
        append(self.states, self.inverse_norms, hidden, 0)

    def append(self, hidden: Tensor) -> None:
        """Add (batch, n, dim) hidden states."""
        end = self.length + hidden.shape[1]
        if end > self.states.shape[1] or (self.states.is_inference() and not torch.is_inference_mode_enabled()):
            room = max(BLOCK, end // 16)
            states, norms = self.states[:, : self.length], self.inverse_norms[:, : self.length]
            self.states = torch.cat(
                [states, states.new_empty(len(states), end + room - self.length, states.shape[2])], 1
            )
            self.inverse_norms = torch.cat([norms, norms.new_empty(len(norms), end + room - self.length)], 1)
        append(self.states, self.inverse_norms, hidden, self.length)
        self.length = end

    def penalty(self, candidates: Tensor) -> Tensor:
        """(batch, k) float32 degeneration penalty of candidates (batch, k, dim)."""
        return degeneration_penalty(candidates, self.states, self.inverse_norms, self.start, self.length)

    def select(
        self, logits: Tensor, probabilities: Tensor, candidates: Tensor, penalty_alpha: float, hidden: Tensor
    ) -> Selection:
        """The best candidate of each row; see :func:`decoding.kernels.selection.select`."""
        history = self.states, self.inverse_norms, self.start, self.length
        return select(logits, probabilities, candidates, penalty_alpha, hidden, *history)

    def truncate(self, length: int) -> None:
        """Forget what was appended after ``length``."""
        self.length = min(self.length, length)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        rows = rows.to(self.states.device)
        self.states, self.inverse_norms = self.states[rows], self.inverse_norms[rows]
        if self.start is not None:
            self.start = self.start[rows]
