"""The candidates of a step of contrastive search."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from decoding.kernels.selection import contrastive_scores

__all__ = ["Candidates"]


@dataclass(frozen=True)
class Candidates:
    """The candidates for the next token of every row.

    Attributes:
        logits: (batch, vocab) float32, processed.
        probabilities: (batch, k) float32, of the candidates.
        tokens: (batch, k) their ids.
        hidden: (batch, k, dim) their hidden states.
        penalty_alpha: α, one number or (batch,) float32.
        counts: (batch,) how many of each row's candidates may be chosen, the first ones; None is all.
    """

    logits: Tensor
    probabilities: Tensor
    tokens: Tensor
    hidden: Tensor
    penalty_alpha: float | Tensor
    counts: Tensor | None = None

    def scores(self, penalty: Tensor) -> Tensor:
        """(batch, k) float32 contrastive scores, from the degeneration penalty (batch, k)."""
        penalty = penalty.to(self.probabilities.device)
        return contrastive_scores(
            self.logits, self.probabilities, self.tokens, penalty, self.penalty_alpha, self.counts
        )
