"""The divergence of premature layers as the formula defines it, in float64: the oracle of the other forms."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["layer_divergence_naive"]


def layer_divergence_naive(
    final: Tensor, premature: Tensor, kind: str = "dola", candidates: Tensor | None = None
) -> Tensor:
    """Compute the divergences of :func:`decoding.kernels.layer_divergence.layer_divergence`, (layers, ...) float64."""
    p, q = final.double().softmax(-1), premature.double().softmax(-1)
    m = (p + q) / 2
    divergences = (_kl(m, p) + _kl(m, q) if kind == "dola" else _kl(p, m) + _kl(q, m)) / 2
    return divergences if candidates is None else divergences.masked_fill(~candidates, -torch.inf)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1)
