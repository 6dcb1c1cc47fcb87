"""The divergence of premature layers in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["layer_divergence_eager"]


def layer_divergence_eager(final: Tensor, premature: Tensor, kind: str = "dola") -> Tensor:
    """Compute the divergences of :func:`decoding.kernels.layer_divergence.layer_divergence`, (layers, ...) float32."""
    final_log = final.float().log_softmax(-1)
    premature_log = premature.float().log_softmax(-1)
    average_log = torch.logaddexp(final_log, premature_log) - math.log(2)
    if kind == "dola":
        average = average_log.exp()
        return 0.5 * (_kl(average, average_log, final_log) + _kl(average, average_log, premature_log))
    return 0.5 * (_kl(final_log.exp(), final_log, average_log) + _kl(premature_log.exp(), premature_log, average_log))


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(p‖q) over the last dimension; a token with p = 0 adds nothing."""
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
