"""Scores of the tokens of a continuation, and what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Scores", "ScoringRequest"]

ScoringRequest = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Token ids of a prompt, after the common prefix, and those of its continuations."""


@dataclass(frozen=True)
class Scores:
    """Scores of the tokens of one continuation under a strategy.

    Attributes:
        normalized: (n,) float32, log-softmax of its scores over the plausible tokens.
        raw: (n,) float32, its scores as they are; the model's own log-probabilities where there is no strategy.
    """

    normalized: Tensor
    raw: Tensor
