"""Exponentials and their sums at one price, whatever the range of the logits.

A CPU takes ten times as long for an exponential of -inf, or one that would be a subnormal number (under 1.2e-38).
Masked scores are -inf nearly everywhere, and the logits of lower layers without the final norm reach over hundreds or
thousands. Such exponentials are 1.6e-38 here.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SMALLEST_LOG", "exp_of_logs", "log_sum_exp"]

SMALLEST_LOG = -87.0  # of a float32 that is no subnormal number


def exp_of_logs(log_probs: Tensor) -> Tensor:
    """Compute exp of (...) float32 log-probabilities, at least ``exp(SMALLEST_LOG)``, in a tensor of its own."""
    return log_probs.clamp(min=SMALLEST_LOG).exp_()


def log_sum_exp(logits: Tensor) -> Tensor:
    """Compute ``logits.logsumexp(-1)``; what is added to a sum of 1 at least is too small to change it.

    Args:
        logits: (..., vocab) float32, -inf where a token is excluded.

    Returns:
        (...) float32; -inf for a row that excludes every token.
    """
    if not logits.is_cpu:
        return logits.logsumexp(-1)
    largest = logits.amax(-1, keepdim=True)
    shift = largest.masked_fill(largest.isinf(), 0.0)
    sums = (logits - shift).clamp_min_(SMALLEST_LOG).exp_().sum(-1, keepdim=True)
    return torch.where(largest == -torch.inf, largest, sums.log() + shift)[..., 0]
