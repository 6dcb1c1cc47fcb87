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
    """See :func:`decoding.kernels.contrast.contrast_logits`."""
    expert = expert.float()
    scores = expert.clone() if beta == 0 else torch.lerp(amateur.float(), expert, 1.0 + beta)
    return _cut(scores, expert, alpha)


def contrast_log_probs_eager(
    expert: Tensor,
    amateur: Tensor,
    beta: float = 1.0,
    amateur_temperature: float = 1.0,
    alpha: float | None = None,
    layer: Tensor | None = None,
) -> Tensor:
    """See :func:`decoding.kernels.contrast.contrast_log_probs`."""
    if layer is not None:
        amateur = torch.take_along_dim(amateur, layer[None, ..., None], dim=0)[0]
    expert, amateur = expert.float(), amateur.float()
    scores = expert.log_softmax(-1)
    if beta != 0:
        amateur = amateur / amateur_temperature if amateur_temperature != 1 else amateur
        scores.sub_(amateur.log_softmax(-1), alpha=beta)
    return _cut(scores, expert, alpha)


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
    """See :func:`decoding.kernels.contrast.multi_layer_contrast`."""
    evidence = refocused(expert, guided, refocus_weight)
    log_probs = evidence.log_softmax(-1)
    scores = _less(log_probs, amateur_weight, amateur)
    if lower is not None and lower_amateur is not None:
        lower_log_probs = lower.float().log_softmax(-1)
        contrasts = _less(lower_log_probs, lower_amateur_weight, lower_amateur)
        if fusion == "entropy":
            scores = fuse_by_entropy(scores, contrasts, torch.cat([log_probs[None], lower_log_probs]))
        else:
            scores = fuse_statically(scores, contrasts, fusion_weight)
    return _cut(scores, evidence, alpha, lower)


def refocused(expert: Tensor, guided: Tensor | None, weight: float) -> Tensor:
    """(1 + γ)·guided - γ·expert on logits (..., vocab), -inf where either is; the expert's without guidance."""
    expert = expert.float()
    if guided is None or weight == 0:
        return expert if guided is None else guided.float()
    return _excluded(torch.lerp(expert, guided.float(), 1.0 + weight), guided, expert[None])


def fuse_statically(final: Tensor, lower: Tensor, weight: float) -> Tensor:
    """F + ω·mean over L of F'_L: a final contrast (..., vocab) and the lower layers' (layers, ..., vocab)."""
    final = final.float()
    return final if weight == 0 else final + weight * lower.float().mean(0)


def fuse_by_entropy(final: Tensor, lower: Tensor, expert_log_probs: Tensor) -> Tensor:
    """Σ w·F over the final contrast and the lower layers', w = softmax over layers of -entropy of the expert there.

    Args:
        final: (..., vocab) contrast of the final layer.
        lower: (layers, ..., vocab) contrasts of the lower layers.
        expert_log_probs: (1 + layers, ..., vocab) the expert's log-probabilities, those of the final layer first.
    """
    log_probs = expert_log_probs.float()
    probs = log_probs.exp()
    entropy = -torch.where(probs > 0, probs * log_probs, 0.0).sum(-1)  # (1 + layers, ...)
    weights = (-entropy).softmax(0)[..., None]
    return (weights * torch.cat([final.float()[None], lower.float()])).sum(0)


def plausible(logits: Tensor, alpha: float) -> Tensor:
    """Adaptive plausibility (Li et al., 2210.15097, eq. 2): which tokens have p >= α·max p.

    Args:
        logits: (..., vocab) of the expert, or its log-probabilities.
        alpha: in [0, 1]; 0 lets every token with a finite logit pass.

    Returns:
        (..., vocab) bool; the most probable token always passes.
    """
    logits = logits.float()
    best = logits.amax(-1, keepdim=True)
    if alpha <= 0:
        return (logits > -torch.inf) | (logits == best)
    return logits >= best + math.log(alpha)


def masked(scores: Tensor, evidence: Tensor, alpha: float | None) -> Tensor:
    """(..., vocab) scores, -inf where a token is not plausible.

    Where every plausible token of a row is excluded, plausibility is taken anew among the tokens that are left.

    Args:
        scores: (..., vocab); -inf where a token is excluded already.
        evidence: (..., vocab) what plausibility is taken from.
        alpha: in [0, 1]; None lets every token pass.
    """
    if alpha is None:
        return scores
    kept = scores.masked_fill(~plausible(evidence, alpha), -torch.inf)
    empty = kept.amax(-1, keepdim=True) == -torch.inf
    if bool(empty.any()):
        among_the_rest = evidence.masked_fill(scores == -torch.inf, -torch.inf)
        again = scores.masked_fill(~plausible(among_the_rest, alpha), -torch.inf)
        kept = torch.where(empty, again, kept)
    return kept


def _less(log_probs: Tensor, weight: float, amateur: Tensor) -> Tensor:
    """Log-probabilities less the amateur's; the amateur's -inf has no say without weight."""
    return log_probs if weight == 0 else log_probs.sub(amateur.float().log_softmax(-1), alpha=weight)


def _cut(scores: Tensor, evidence: Tensor, alpha: float | None, lower: Tensor | None = None) -> Tensor:
    """Scores, -inf where a token is not plausible or the expert says so."""
    if alpha is None or lower is not None:  # what the final layer excludes is not plausible either
        scores = _excluded(scores, evidence, lower)
    return masked(scores, evidence, alpha)


def _excluded(scores: Tensor, expert: Tensor, others: Tensor | None = None) -> Tensor:
    """Scores (..., vocab), in place, -inf where the expert is, or any of (n, ..., vocab) others."""
    # An expert's -inf makes a score -inf by itself, except against another infinity, which shows in the maximum. On a
    # CPU a look there takes a tenth of the time; a GPU would have to be waited for.
    if scores.is_cpu and scores.amax().item() < math.inf:
        return scores
    scores.masked_fill_(expert.isneginf(), -torch.inf)
    return scores if others is None else scores.masked_fill_(others.isneginf().any(0), -torch.inf)
