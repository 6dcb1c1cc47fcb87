"""The divergence of premature layers in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["layer_divergence_eager"]

LOG_2 = math.log(2)


def layer_divergence_eager(final: Tensor, premature: Tensor, kind: str = "dola") -> Tensor:
    """Compute the divergences of :func:`decoding.kernels.layer_divergence.layer_divergence`, (layers, ...) float32."""
    final_log = final.float().log_softmax(-1)
    premature_log = premature.float().log_softmax(-1)
    if kind == "dola":
        return _dola(final_log, premature_log)
    average_log = torch.logaddexp(final_log, premature_log) - LOG_2
    return 0.5 * (_kl(final_log.exp(), final_log, average_log) + _kl(premature_log.exp(), premature_log, average_log))


def _dola(final_log: Tensor, premature_log: Tensor) -> Tensor:
    """Compute Σ M·log cosh((log p_N - log p_j) / 2), which is ½[KL(M‖p_N) + KL(M‖p_j)] with half the passes over it:
    log M is log cosh of half the difference more than the mean of the two logarithms.
    """
    half = (final_log - premature_log).mul_(0.5)
    log_cosh = torch.logaddexp(half, -half).sub_(LOG_2)
    average = premature_log.exp().add_(final_log.exp()).mul_(0.5)
    if half.isnan().any():  # both are -inf, and the average 0
        log_cosh.masked_fill_(average == 0, 0.0)
    return torch.linalg.vecdot(average, log_cosh)


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(p‖q) over the last dimension; a token with p = 0 adds nothing."""
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
