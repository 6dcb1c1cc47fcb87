"""The divergence of premature layers in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["layer_divergence_eager"]

LOG_2 = math.log(2)
SMALLEST_LOG = -87.0  # of a float32 that is no subnormal number


def layer_divergence_eager(
    final: Tensor, premature: Tensor, kind: str = "dola", candidates: Tensor | None = None
) -> Tensor:
    """Compute the divergences of :func:`decoding.kernels.layer_divergence.layer_divergence`, (layers, ...) float32."""
    final_log = final.float().log_softmax(-1)
    premature_log = premature.float().log_softmax(-1)
    divergences = (_dola if kind == "dola" else _jensen_shannon)(final_log, premature_log)
    return divergences if candidates is None else divergences.masked_fill(~candidates, -torch.inf)


def _jensen_shannon(final_log: Tensor, premature_log: Tensor) -> Tensor:
    average_log = torch.logaddexp(final_log, premature_log) - LOG_2
    return 0.5 * (_kl(final_log.exp(), final_log, average_log) + _kl(premature_log.exp(), premature_log, average_log))


def _dola(final_log: Tensor, premature_log: Tensor) -> Tensor:
    """Compute Σ M·log cosh((log p_N - log p_j) / 2), which is ½[KL(M‖p_N) + KL(M‖p_j)] with half the passes over it:
    log M is log cosh of half the difference more than the mean of the two logarithms.
    """
    distance = (final_log - premature_log).abs_()
    log_cosh = torch.nn.functional.softplus(distance).sub_(distance, alpha=0.5).sub_(LOG_2)
    average = _exp(premature_log).add_(_exp(final_log)).mul_(0.5)
    divergence = torch.linalg.vecdot(average, log_cosh)
    if divergence.isnan().any():  # a token that both exclude has distance NaN; one that only one excludes, infinity
        log_cosh.masked_fill_(distance.isnan(), 0.0).masked_fill_(distance == torch.inf, torch.inf)
        divergence = torch.linalg.vecdot(average, log_cosh)
    return divergence


def _exp(logs: Tensor) -> Tensor:
    """Compute exp without subnormal numbers, on which a CPU is ten times slower; they are less than 1.2e-38."""
    return logs.clamp(min=SMALLEST_LOG).exp_()


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(p‖q) over the last dimension; a token with p = 0 adds nothing."""
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
