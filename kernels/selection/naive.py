"""The choice of contrastive search as the formula defines it: the oracle of the other forms."""

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
    penalty_alpha: float | Tensor,
    hidden: Tensor,
    history: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose token, branch and score, (batch,) each, one row at a time: :func:`decoding.kernels.selection.select`."""
    penalty, _ = degeneration_penalty_naive(hidden, history, start, length)
    tokens, branches, scores = [], [], []
    for row, ids in enumerate(candidates.tolist()):
        ranked = []
        alpha = float(penalty_alpha[row] if isinstance(penalty_alpha, Tensor) else penalty_alpha)
        count = len(ids) if counts is None else int(counts[row])
        for branch, token in enumerate(ids):
            p, cosine = float(probabilities[row, branch]), float(penalty[row, branch])
            score = (1 - alpha) * p - alpha * cosine
            score = -math.inf if branch >= count or float(logits[row, token]) == -math.inf else score
            ranked.append((-score, token, branch))
        score, token, branch = min(ranked)  # the largest score, and of equal ones the lowest token id
        tokens.append(token)
        branches.append(branch)
        scores.append(-score)
    return torch.tensor(tokens), torch.tensor(branches), torch.tensor(scores, dtype=torch.float32)
