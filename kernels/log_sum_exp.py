"""The logarithm of the sum of a row's exponentials, at the same price for scores that are masked."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SMALLEST_LOG", "log_sum_exp"]

SMALLEST_LOG = -87.0  # of a float32 that is no subnormal number


def log_sum_exp(scores: Tensor) -> Tensor:
    """Compute ``scores.logsumexp(-1)``.

    A CPU takes ten times as long for the exponential of -inf, and of what would be a subnormal number, and masked
    scores are -inf nearly everywhere. In place of these it adds 1.6e-38 to a sum that is 1 at least.

    Args:
        scores: (..., vocab) float32, -inf where a token is excluded.

    Returns:
        (...) float32; -inf for a row that excludes every token.
    """
    if not scores.is_cpu:
        return scores.logsumexp(-1)
    largest = scores.amax(-1, keepdim=True)
    shift = largest.masked_fill(largest.isinf(), 0.0)
    sums = (scores - shift).clamp_min_(SMALLEST_LOG).exp_().sum(-1, keepdim=True)
    return torch.where(largest == -torch.inf, largest, sums.log() + shift)[..., 0]
