"""The contrasts in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "contrast_log_probs_eager",
    "contrast_logits_eager",
    "fuse_by_entropy",
    "fuse_statically",
    "masked",
    "multi_layer_contrast_eager",
    "plausible",
    "refocused",
]


def contrast_logits_eager(expert: Tensor, amateur: Tensor, beta: float, alpha: float | None = None) -> Tensor:
    """Compute :func:`decoding.kernels.contrast.contrast_logits`, (..., vocab) float32."""
    expert = expert.float()
    scores = expert.clone() if beta == 0 else torch.lerp(amateur.float(), expert, 1.0 + beta)
    return _exclude_and_mask(scores, expert, alpha)


def contrast_log_probs_eager(
    expert: Tensor,
    amateur: Tensor,
    beta: float = 1.0,
    amateur_temperature: float = 1.0,
    alpha: float | None = None,
    layer: Tensor | None = None,
) -> Tensor:
    """Compute :func:`decoding.kernels.contrast.contrast_log_probs`, (..., vocab) float32."""
    if layer is not None:
        amateur = torch.take_along_dim(amateur, layer[None, ..., None], dim=0)[0]
    expert, amateur = expert.float(), amateur.float()
    scores = expert.log_softmax(-1)
    if beta != 0:
        amateur = amateur / amateur_temperature if amateur_temperature != 1 else amateur
        scores.sub_(amateur.log_softmax(-1), alpha=beta)
    return _exclude_and_mask(scores, expert, alpha)


def multi_layer_contrast_eager(
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
    """Compute :func:`decoding.kernels.contrast.multi_layer_contrast`, (..., vocab) float32."""
    refocused_logits = refocused(expert, guided, refocus_weight)
    log_probs = refocused_logits.log_softmax(-1)
    scores = _subtract_amateur(log_probs, amateur_weight, amateur)
    if lower is not None and lower_amateur is not None:
        lower_log_probs = lower.float().log_softmax(-1)
        contrasts = _subtract_amateur(lower_log_probs, lower_amateur_weight, lower_amateur)
        if fusion == "entropy":
            scores = fuse_by_entropy(scores, contrasts, torch.cat([log_probs[None], lower_log_probs]))
        else:
            scores = fuse_statically(scores, contrasts, fusion_weight)
    return _exclude_and_mask(scores, refocused_logits, alpha, lower)


def refocused(expert: Tensor, guided: Tensor | None, weight: float) -> Tensor:
    """Compute (1 + γ)·guided - γ·expert on logits (..., vocab), -inf where either is; without guidance the expert's.

    Returns:
        (..., vocab) float32.
    """
    expert = expert.float()
    if guided is None or weight == 0:
        return expert if guided is None else guided.float()
    return _exclude(torch.lerp(expert, guided.float(), 1.0 + weight), guided, expert[None])


def fuse_statically(final: Tensor, lower: Tensor, weight: float) -> Tensor:
    """Compute F + ω·mean over L of F'_L from contrasts of the final layer and of the lower ones.

    Args:
        final: (..., vocab), F.
        lower: (layers, ..., vocab), F'_L.
        weight: ω; 0 leaves the lower layers out.

    Returns:
        (..., vocab) float32.
    """
    final = final.float()
    return final if weight == 0 else final + weight * lower.float().mean(0)


def fuse_by_entropy(final: Tensor, lower: Tensor, expert_log_probs: Tensor) -> Tensor:
    """Compute Σ w·F over the contrasts of all layers, w = softmax over layers of -entropy of the expert's distribution.

    Args:
        final: (..., vocab), contrast of the final layer.
        lower: (layers, ..., vocab), contrasts of the lower layers.
        expert_log_probs: (1 + layers, ..., vocab), the expert's log-probabilities, those of the final layer first.

    Returns:
        (..., vocab) float32.
    """
    log_probs = expert_log_probs.float()
    probs = log_probs.exp()
    entropy = -torch.where(probs > 0, probs * log_probs, 0.0).sum(-1)  # (1 + layers, ...)
    weights = (-entropy).softmax(0)[..., None]
    return (weights * torch.cat([final.float()[None], lower.float()])).sum(0)


def plausible(logits: Tensor, alpha: float) -> Tensor:
    """Find the tokens with p >= α·max p (adaptive plausibility, Li et al., 2210.15097, eq. 2).

    Args:
        logits: (..., vocab), the expert's logits or log-probabilities.
        alpha: in [0, 1]; 0 lets every token with a finite logit pass.

    Returns:
        (..., vocab) bool; the most probable token always passes.
    """
    logits = logits.float()
    best = logits.amax(-1, keepdim=True)
    if alpha <= 0:
        return (logits > -torch.inf) | (logits == best)
    return logits >= best + math.log(alpha)


def masked(scores: Tensor, plausibility_logits: Tensor, alpha: float | None) -> Tensor:
    """Mask scores with -inf where a token is not plausible.

    Where every plausible token of a row is excluded, plausibility is computed again among the tokens that are left.

    Args:
        scores: (..., vocab), -inf where a token is already excluded.
        plausibility_logits: (..., vocab), the logits whose plausibility counts.
        alpha: in [0, 1]; None lets every token pass.

    Returns:
        (..., vocab) scores.
    """
    if alpha is None:
        return scores
    plausible_scores = scores.masked_fill(~plausible(plausibility_logits, alpha), -torch.inf)
    empty = plausible_scores.amax(-1, keepdim=True) == -torch.inf
    if bool(empty.any()):
        remaining = plausibility_logits.masked_fill(scores == -torch.inf, -torch.inf)
        fallback = scores.masked_fill(~plausible(remaining, alpha), -torch.inf)
        plausible_scores = torch.where(empty, fallback, plausible_scores)
    return plausible_scores


def _subtract_amateur(log_probs: Tensor, weight: float, amateur: Tensor) -> Tensor:
    """Subtract the amateur's weighted log-probabilities; with weight 0 its -inf are ignored."""
    return log_probs if weight == 0 else log_probs.sub(amateur.float().log_softmax(-1), alpha=weight)


def _exclude_and_mask(scores: Tensor, expert: Tensor, alpha: float | None, lower: Tensor | None = None) -> Tensor:
    """Set scores to -inf where a layer of the expert excludes the token or the token is not plausible."""
    if alpha is None or lower is not None:  # else the mask covers it: an excluded token is not plausible
        scores = _exclude(scores, expert, lower)
    return masked(scores, expert, alpha)


def _exclude(scores: Tensor, expert: Tensor, others: Tensor | None = None) -> Tensor:
    """Set scores (..., vocab) to -inf, in place, where the expert or any of (n, ..., vocab) others is."""
    # An expert's -inf makes the score -inf by itself, except against another infinity, which shows in the maximum.
    # Checking the maximum takes a tenth of the time on a CPU; on a GPU it would make the host wait.
    if scores.is_cpu and scores.amax().item() < math.inf:
        return scores
    scores.masked_fill_(expert.isneginf(), -torch.inf)
    return scores if others is None else scores.masked_fill_(others.isneginf().any(0), -torch.inf)
