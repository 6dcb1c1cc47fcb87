"""The contrasts as the formulas have them, in float64: the oracle of every other form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["contrast_log_probs_naive", "contrast_logits_naive", "multi_layer_contrast_naive"]


def contrast_logits_naive(expert: Tensor, amateur: Tensor, beta: float, alpha: float | None = None) -> Tensor:
    """(1 + β)·s_e - β·s_a; see :func:`contrast_logits`."""
    e = expert.double()
    return _cut((1 + beta) * e - _times(beta, amateur.double()), [e], alpha)


def contrast_log_probs_naive(
    expert: Tensor, amateur: Tensor, beta: float = 1.0, amateur_temperature: float = 1.0, alpha: float | None = None
) -> Tensor:
    """Log p_e - β·log p_a(τ); see :func:`contrast_log_probs`, the amateur's layers chosen before."""
    e = _log_probs(expert)
    return _cut(e - _times(beta, _log_probs(amateur.double() / amateur_temperature)), [e], alpha)


def multi_layer_contrast_naive(
    expert: Tensor,
    amateur: Tensor,
    guided: Tensor | None = None,
    lower: Tensor | None = None,
    lower_amateur: Tensor | None = None,
    *,
    amateur_weight: float = 1.0,
    lower_amateur_weight: float = 1.0,
    fusion_weight: float = 0.5,
    fusion: str = "static",
    refocus_weight: float = 0.5,
    alpha: float | None = None,
) -> Tensor:
    """See :func:`multi_layer_contrast`."""
    r = _log_probs(expert)
    if guided is not None:
        g = _log_probs(guided)
        excluded = (g == -torch.inf) | ((r == -torch.inf) & (refocus_weight != 0))
        r = ((1 + refocus_weight) * g - _times(refocus_weight, r)).masked_fill(excluded, -torch.inf)
        r = _log_probs(r)
    experts, contrasts = [r], [r - _times(amateur_weight, _log_probs(amateur))]
    if lower is not None and lower_amateur is not None:
        for x, a in zip(lower, lower_amateur, strict=True):
            experts.append(_log_probs(x))
            contrasts.append(experts[-1] - _times(lower_amateur_weight, _log_probs(a)))
    if fusion == "entropy":
        weights = torch.stack([torch.special.xlogy(e.exp(), e.exp()).sum(-1) for e in experts]).softmax(0)
    else:
        weights = torch.tensor([1.0] + [fusion_weight / max(1, len(contrasts) - 1)] * (len(contrasts) - 1))
        weights = weights.double().view(-1, *[1] * (r.dim() - 1))
    fused = [_times(w[..., None], c) for w, c in zip(weights, contrasts, strict=True)]
    return _cut(torch.stack(fused).sum(0), experts, alpha)


def _log_probs(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _times(weight: Tensor | float, x: Tensor) -> Tensor:
    """weight·x, 0 where the weight is, whatever x."""
    return torch.where(torch.as_tensor(weight) == 0, 0.0, weight * x)


def _cut(scores: Tensor, experts: list[Tensor], alpha: float | None) -> Tensor:
    """-inf where an expert says so, and where p < α·max p of the first: max p of what is left, if nothing is."""
    scores = scores.masked_fill(torch.stack([e == -torch.inf for e in experts]).any(0), -torch.inf)
    if alpha is None:
        return scores
    p = experts[0].softmax(-1)
    kept = _plausible(scores, p, alpha)
    again = _plausible(scores, p.masked_fill(scores == -torch.inf, 0.0), alpha)
    return torch.where((kept == -torch.inf).all(-1, keepdim=True), again, kept)


def _plausible(scores: Tensor, p: Tensor, alpha: float) -> Tensor:
    return scores.masked_fill(p < alpha * p.amax(-1, keepdim=True), -torch.inf)
