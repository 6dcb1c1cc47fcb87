"""The contrasts as the formulas define them, in float64: the oracle of the other forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.kernels.contrast.settings import Setting

__all__ = [
    "contrast_log_probs_naive",
    "contrast_logits_naive",
    "multi_layer_contrast_naive",
    "weighted_contrast_naive",
]


def contrast_logits_naive(expert: Tensor, amateur: Tensor, beta: Setting, alpha: Setting | None = None) -> Tensor:
    """Compute (1 + β)·s_e - β·s_a: :func:`decoding.kernels.contrast.contrast_logits` in float64."""
    e, b = expert.double(), _column(beta)
    return _exclude_and_mask((1 + b) * e - _weighted(b, amateur.double()), [e], alpha)


def contrast_log_probs_naive(
    expert: Tensor,
    amateur: Tensor,
    beta: Setting = 1.0,
    amateur_temperature: Setting = 1.0,
    alpha: Setting | None = None,
) -> Tensor:
    """Compute log p_e - β·log p_a(τ): :func:`decoding.kernels.contrast.contrast_log_probs` in float64.

    The amateur is (..., vocab): its layers are chosen before.
    """
    e = _log_probs(expert)
    a = _log_probs(amateur.double() / _column(amateur_temperature))
    return _exclude_and_mask(e - _weighted(_column(beta), a), [e], alpha)


def multi_layer_contrast_naive(
    expert: Tensor,
    amateur: Tensor,
    guided: Tensor | None = None,
    lower: Tensor | None = None,
    lower_amateur: Tensor | None = None,
    *,
    amateur_weight: Setting = 1.0,
    lower_amateur_weight: Setting = 1.0,
    fusion_weight: Setting = 0.5,
    fusion: str = "static",
    refocus_weight: Setting = 0.5,
    alpha: Setting | None = None,
    layers: Tensor | None = None,
) -> Tensor:
    """Compute :func:`decoding.kernels.contrast.multi_layer_contrast` in float64."""
    r = _log_probs(expert)
    if guided is not None:
        g, c = _log_probs(guided), _column(refocus_weight)
        excluded = (g == -torch.inf) | ((r == -torch.inf) & (c != 0))
        r = _log_probs(((1 + c) * g - _weighted(c, r)).masked_fill(excluded, -torch.inf))
    experts, contrasts = [r], [r - _weighted(_column(amateur_weight), _log_probs(amateur))]
    counted = torch.ones(1 if lower is None else 1 + len(lower), *r.shape[:-1], dtype=torch.bool, device=r.device)
    if lower is not None and lower_amateur is not None:
        for x, a in zip(lower, lower_amateur, strict=True):
            experts.append(_log_probs(x))
            contrasts.append(experts[-1] - _weighted(_column(lower_amateur_weight), _log_probs(a)))
        if layers is not None:
            counted[1:] = layers
        if fusion == "static":
            counted[1:] &= torch.as_tensor(fusion_weight != 0, device=r.device)
    if fusion == "entropy":
        negative = torch.stack([torch.special.xlogy(e.exp(), e.exp()).sum(-1) for e in experts])
        weights = negative.masked_fill(~counted, -torch.inf).softmax(0)
    else:
        weights = counted * (fusion_weight / counted[1:].sum(0).clamp_min(1).double())
        weights[0] = 1.0
    fused = [_weighted(w[..., None], c) for w, c in zip(weights, contrasts, strict=True)]
    experts = [torch.where(own[..., None], e, 0.0) for own, e in zip(counted, experts, strict=True)]
    return _exclude_and_mask(torch.stack(fused).sum(0), experts, alpha)


def weighted_contrast_naive(
    logits: Sequence[Tensor],
    weights: Sequence[Setting],
    form: str = "logits",
    temperatures: Sequence[Setting] | None = None,
    alpha: Setting | None = None,
) -> Tensor:
    """Compute :func:`decoding.kernels.contrast.weighted_contrast` in float64."""
    first = logits[0].double()
    total, experts = torch.zeros_like(first), [first]
    for reader, weight, temperature in zip(logits, weights, temperatures or [1.0] * len(logits), strict=True):
        w = _column(weight)
        s = reader.double() / _column(temperature)
        s = _log_probs(s) if form == "log_probs" else s
        total = total + _weighted(w, s)
        experts.append(torch.where(torch.as_tensor(w > 0), s, 0.0))
    return _exclude_and_mask(total, experts, alpha)


def _log_probs(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _column(setting: Setting) -> Setting:
    """Return a number as it is, and settings (...) as (..., 1)."""
    return setting.double()[..., None] if isinstance(setting, Tensor) else setting


def _weighted(weight: Setting, x: Tensor) -> Tensor:
    """Multiply by a weight; 0 where the weight is 0, for infinite x too."""
    return torch.where(torch.as_tensor(weight) == 0, 0.0, weight * x)


def _exclude_and_mask(scores: Tensor, experts: list[Tensor], alpha: Setting | None) -> Tensor:
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


def _mask_implausible(scores: Tensor, p: Tensor, alpha: Setting) -> Tensor:
    return scores.masked_fill(p < _column(alpha) * p.amax(-1, keepdim=True), -torch.inf)
