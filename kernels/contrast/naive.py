"""The contrasts as the formulas define them, in float64: the oracle of the other forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "contrast_log_probs_naive",
    "contrast_logits_naive",
    "multi_layer_contrast_naive",
    "weighted_contrast_naive",
]


def contrast_logits_naive(expert: Tensor, amateur: Tensor, beta: float, alpha: float | None = None) -> Tensor:
    """Compute (1 + β)·s_e - β·s_a: :func:`decoding.kernels.contrast.contrast_logits` in float64."""
    e = expert.double()
    return _exclude_and_mask((1 + beta) * e - _weighted(beta, amateur.double()), [e], alpha)


def contrast_log_probs_naive(
    expert: Tensor, amateur: Tensor, beta: float = 1.0, amateur_temperature: float = 1.0, alpha: float | None = None
) -> Tensor:
    """Compute log p_e - β·log p_a(τ): :func:`decoding.kernels.contrast.contrast_log_probs` in float64.

    The amateur is (..., vocab): its layers are chosen before.
    """
    e = _log_probs(expert)
    return _exclude_and_mask(e - _weighted(beta, _log_probs(amateur.double() / amateur_temperature)), [e], alpha)


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
    """Compute :func:`decoding.kernels.contrast.multi_layer_contrast` in float64."""
    r = _log_probs(expert)
    if guided is not None:
        g = _log_probs(guided)
        excluded = (g == -torch.inf) | ((r == -torch.inf) & (refocus_weight != 0))
        r = ((1 + refocus_weight) * g - _weighted(refocus_weight, r)).masked_fill(excluded, -torch.inf)
        r = _log_probs(r)
    experts, contrasts = [r], [r - _weighted(amateur_weight, _log_probs(amateur))]
    if lower is not None and lower_amateur is not None:
        for x, a in zip(lower, lower_amateur, strict=True):
            experts.append(_log_probs(x))
            contrasts.append(experts[-1] - _weighted(lower_amateur_weight, _log_probs(a)))
    if fusion == "entropy":
        weights = torch.stack([torch.special.xlogy(e.exp(), e.exp()).sum(-1) for e in experts]).softmax(0)
    else:
        weights = torch.tensor([1.0] + [fusion_weight / max(1, len(contrasts) - 1)] * (len(contrasts) - 1))
        weights = weights.double().view(-1, *[1] * (r.dim() - 1))
    fused = [_weighted(w[..., None], c) for w, c in zip(weights, contrasts, strict=True)]
    return _exclude_and_mask(torch.stack(fused).sum(0), experts, alpha)


def weighted_contrast_naive(
    logits: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    form: str = "logits",
    temperatures: Sequence[float] | None = None,
    alpha: float | None = None,
) -> Tensor:
    """Compute :func:`decoding.kernels.contrast.weighted_contrast` in float64."""
    first = logits[0].double()
    total, experts = torch.zeros_like(first), [first]
    for reader, weight, temperature in zip(logits, weights, temperatures or [1.0] * len(logits), strict=True):
        w = torch.as_tensor(weight, dtype=torch.float64)[..., None]  # (..., 1)
        s = reader.double() / temperature
        s = _log_probs(s) if form == "log_probs" else s
        total = total + _weighted(w, s)
        experts.append(torch.where(w > 0, s, 0.0))
    return _exclude_and_mask(total, experts, alpha)


def _log_probs(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _weighted(weight: Tensor | float, x: Tensor) -> Tensor:
    """Multiply by a weight; 0 where the weight is 0, for infinite x too."""
    return torch.where(torch.as_tensor(weight) == 0, 0.0, weight * x)


def _exclude_and_mask(scores: Tensor, experts: list[Tensor], alpha: float | None) -> Tensor:
    """Set scores to -inf where any expert is, and where p < α·max p of the first expert.

    Where that leaves a row without a token, max p is taken over the tokens that no expert excludes.
    """
    scores = scores.masked_fill(torch.stack([e == -torch.inf for e in experts]).any(0), -torch.inf)
    if alpha is None:
        return scores
    p = experts[0].softmax(-1)
    plausible = _mask_implausible(scores, p, alpha)
    fallback = _mask_implausible(scores, p.masked_fill(scores == -torch.inf, 0.0), alpha)
    return torch.where((plausible == -torch.inf).all(-1, keepdim=True), fallback, plausible)


def _mask_implausible(scores: Tensor, p: Tensor, alpha: float) -> Tensor:
    return scores.masked_fill(p < alpha * p.amax(-1, keepdim=True), -torch.inf)
