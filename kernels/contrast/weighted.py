"""A weighted sum of several readers' scores in plain torch, and the measures that weights depend on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.kernels.contrast.eager import masked
from decoding.kernels.contrast.settings import Setting, column
from decoding.kernels.exponentials import exp_of_logs

__all__ = ["FORMS", "divergence", "drawn_to_first", "entropy", "weighted_contrast_eager"]

FORMS = ("logits", "log_probs")


def weighted_contrast_eager(
    logits: Sequence[Tensor],
    weights: Sequence[Setting],
    form: str,
    temperatures: Sequence[Setting],
    alpha: Setting | None = None,
) -> Tensor:
    """Compute :func:`decoding.kernels.contrast.weighted_contrast`, (..., vocab) float32."""
    first = logits[0].float()
    total = torch.zeros_like(first)
    excluded = first.isneginf()
    for reader, weight, temperature in zip(logits, weights, temperatures, strict=True):
        if not isinstance(weight, Tensor) and weight == 0:
            continue
        scores = reader.float()
        if isinstance(temperature, Tensor):
            scores = scores / column(temperature)
        elif temperature != 1:
            scores = scores / temperature
        scores = scores.log_softmax(-1) if form == "log_probs" else scores
        if isinstance(weight, Tensor):
            rows = column(weight)
            excluded |= scores.isneginf() & (rows > 0)
            total += torch.where(rows == 0, 0.0, rows * scores)
        else:
            if weight > 0:
                excluded |= scores.isneginf()
            total += scores * weight
    total.masked_fill_(excluded, -torch.inf)  # against another infinity the sum is none
    return masked(total, first, alpha)


def drawn_to_first(weights: Sequence[float], strength: Tensor) -> list[Setting]:
    """Draw the weights of readers towards the first reader alone, by a strength f for each row.

    The weighted sum is then s_first + f·(Σ w·s - s_first).

    Args:
        weights: of each reader at strength 1.
        strength: (...) f; 0 leaves the first reader alone.

    Returns:
        The weights (...) of each reader.
    """
    first, *others = weights
    return [1 + strength * (first - 1), *(strength * weight for weight in others)]


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of distributions, (...) float32 in nats, of (..., vocab) logits."""
    log_probs = logits.float().log_softmax(-1)
    return torch.special.entr(exp_of_logs(log_probs)).sum(-1)


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Compute the Jensen-Shannon divergence of two distributions, (...) float32 in bits: 0 where they are the same, 1
    where they share no token.

    It is H(M) - (H(P) + H(Q)) / 2 with M their average.

    Args:
        logits: (..., vocab) of P.
        others: (..., vocab) of Q.
    """
    p, q = (either.float().softmax(-1) for either in (logits, others))
    within = (torch.special.entr(p).sum(-1) + torch.special.entr(q).sum(-1)) / 2
    nats = torch.special.entr((p + q) / 2).sum(-1) - within
    return (nats / math.log(2)).clamp(0.0, 1.0)
