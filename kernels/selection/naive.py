"""The choice of contrastive search as the formula has it: the oracle of every other form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from decoding.kernels.degeneration_penalty.naive import degeneration_penalty_naive

__all__ = ["select_naive"]


def select_naive(
    logits: Tensor,
    probabilities: Tensor,
    candidates: Tensor,
    penalty_alpha: float,
    hidden: Tensor,
    history: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token, branch and score of each row; see :func:`decoding.kernels.selection.select` for the shapes."""
    penalty, _ = degeneration_penalty_naive(hidden, history, start, length)
    tokens, branches, scores = [], [], []
    for row, ids in enumerate(candidates.tolist()):
        ranked = []
        for branch, token in enumerate(ids):
            score = (1 - penalty_alpha) * float(probabilities[row, branch]) - penalty_alpha * float(
                penalty[row, branch]
            )
            score = -math.inf if float(logits[row, token]) == -math.inf else score
            ranked.append((-score, token, branch))
        score, token, branch = min(ranked)  # the largest score, of equals the lowest token id
        tokens.append(token)
        branches.append(branch)
        scores.append(-score)
    return torch.tensor(tokens), torch.tensor(branches), torch.tensor(scores, dtype=torch.float32)
