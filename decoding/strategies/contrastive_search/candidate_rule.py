"""How many candidates contrastive search has at a place of the text, and how much their penalty weighs there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CandidateRule", "Limits", "SameEverywhere"]


@dataclass(frozen=True)
class Limits:
    """What a rule says of some places of every row.

    Attributes:
        penalty_alpha: α, one number for all places, or (batch, places) float32.
        counts: (batch, places) int64, how many of the most probable tokens are candidates; None is as many as there
            are.
    """

    penalty_alpha: float | Tensor
    counts: Tensor | None = None

    def alpha_at(self, place: int) -> float | Tensor:
        """α at a place: one number, or (batch,)."""
        return self.penalty_alpha[:, place] if isinstance(self.penalty_alpha, Tensor) else self.penalty_alpha

    def counts_at(self, place: int) -> Tensor | None:
        """(batch,) the numbers of candidates at a place."""
        return None if self.counts is None else self.counts[:, place]

    def is_candidate(self, best: Tensor) -> Tensor:
        """(batch, places, k) bool, True for those of the most probable tokens that are candidates."""
        if self.counts is None:
            return torch.ones_like(best, dtype=torch.bool)
        return torch.arange(best.shape[-1], device=best.device) < self.counts[..., None]


class CandidateRule(ABC):
    """The rule of one call. What it remembers of the text is the call's, and each row's own.

    Attributes:
        most: the largest number of candidates that it gives.
    """

    most: int

    @abstractmethod
    def limits(self, probabilities: Tensor, best: Tensor) -> Limits:
        """Return numbers of candidates and their penalty's weight at places that follow each other.

        The rule may be asked again of the same places, and of other ones in their stead, until :meth:`accept`.

        Args:
            probabilities: (batch, places, vocab) float32, of the next token after all processors, at the first place
                after those accepted and the ones that follow.
            best: (batch, places, most) float32, the largest of these, in order.
        """

    def accept(self, places: Sequence[int] | None = None) -> None:  # noqa: B027 - some rules remember nothing
        """Note that tokens were chosen at the first ``places[i]`` of the last places of row i; None is at all."""

    def reorder(self, rows: Tensor) -> None:  # noqa: B027 - likewise
        """Make row i what row ``rows[i]`` was."""


class SameEverywhere(CandidateRule):
    """The same candidates and weight at every place.

    Args:
        top_k: k.
        penalty_alpha: α.
    """

    def __init__(self, top_k: int, penalty_alpha: float) -> None:
        self.most = top_k
        self._limits = Limits(penalty_alpha)

    def limits(self, probabilities: Tensor, best: Tensor) -> Limits:
        """Return the same limits."""
        return self._limits
