"""Truncations of next-token distributions: the tokens that a row keeps, from its logits alone.

Each takes logits (..., vocab) of any float dtype and returns a bool mask of their shape, True for tokens that are kept.
The most probable token is kept always. A token at -inf, which a processor has excluded, counts for nothing: it takes
part in no mean, no deviation and no sum, and a mask is of no account at it. They are plain torch: a few passes over the
vocabulary, with no read by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["MASKS", "p_less", "top_n_sigma"]


def top_n_sigma(logits: Tensor, n: float = 1.0) -> Tensor:
    """Find the tokens with l >= max l - n·σ (top-nσ, Tang et al., 2411.07641).

    σ is the standard deviation of the row's finite logits, of all of them (divided by their number): a row with one
    finite logit has σ = 0. A temperature divides both sides, so that the tokens kept do not depend on it.

    Args:
        logits: (..., vocab), logits or log-probabilities.
        n: >= 0; 0 keeps the largest alone.

    Returns:
        (..., vocab) bool. A row with NaN keeps them.
    """
    logits = logits.float()
    finite = logits.isfinite()
    count = finite.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(finite, logits, 0.0).sum(-1, keepdim=True) / count
    deviation = torch.where(finite, logits - mean, 0.0)
    sigma = (torch.linalg.vecdot(deviation, deviation)[..., None] / count).sqrt()
    return ~(logits < logits.amax(-1, keepdim=True) - n * sigma)


def p_less(logits: Tensor) -> Tensor:
    """Find the tokens with p >= Σ p² (p-less, Tan et al., 2509.23234).

    Σ p² is the probability that two independent draws are the same token. It is never above the largest p.

    Args:
        logits: (..., vocab), logits or log-probabilities, after any temperature.

    Returns:
        (..., vocab) bool. A row with NaN keeps them.
    """
    log_p = logits.float().log_softmax(-1)
    # In logarithms neither the squares nor a flat distribution over a large vocabulary underflow.
    limit = (2 * log_p).logsumexp(-1, keepdim=True)
    # The largest p of a flat distribution is Σ p² itself, which rounding may put above it.
    return ~(log_p < torch.minimum(limit, log_p.amax(-1, keepdim=True)))


# By name, those that may say which tokens of a contrast are plausible.
MASKS: Mapping[str, Callable[[Tensor], Tensor]] = {"top-n-sigma": top_n_sigma, "p-less": p_less}
