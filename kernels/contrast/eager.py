"""The contrasts in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from decoding.kernels.contrast.settings import Setting, column, log_of, require_one_a_row
from decoding.kernels.exponentials import SMALLEST_LOG, exp_of_logs

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


def contrast_logits_eager(expert: Tensor, amateur: Tensor, beta: Setting, alpha: Setting | None = None) -> Tensor:
    """Compute :func:`decoding.kernels.contrast.contrast_logits`, (..., vocab) float32."""
    expert = expert.float()
    if isinstance(beta, Tensor):
        beta = column(beta)
        scores = torch.where(beta == 0, expert, torch.lerp(amateur.float(), expert, 1.0 + beta))
    else:
        scores = expert.clone() if beta == 0 else torch.lerp(amateur.float(), expert, 1.0 + beta)
    return _exclude_and_mask(scores, expert, alpha)


def contrast_log_probs_eager(
    expert: Tensor,
    amateur: Tensor,
    beta: Setting = 1.0,
    amateur_temperature: Setting = 1.0,
    alpha: Setting | None = None,
    layer: Tensor | None = None,
) -> Tensor:
    """Compute :func:`decoding.kernels.contrast.contrast_log_probs`, (..., vocab) float32."""
    if layer is not None:
        rows = amateur.flatten(1, -2) if amateur.dim() > 2 else amateur[:, None]  # (layers, rows, vocab)
        chosen = rows[layer.flatten(), torch.arange(rows.shape[1], device=rows.device)]
        amateur = chosen.view(amateur.shape[1:])
    expert = expert.float()
    scores = _subtract_amateur(expert.log_softmax(-1), beta, amateur, amateur_temperature, in_place=True)
    return _exclude_and_mask(scores, expert, alpha)


def multi_layer_contrast_eager(
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
    """Compute :func:`decoding.kernels.contrast.multi_layer_contrast`, (..., vocab) float32."""
    refocused_logits = refocused(expert, guided, refocus_weight)
    log_probs = refocused_logits.log_softmax(-1)
    scores = _subtract_amateur(log_probs, amateur_weight, amateur)
    if lower is not None and lower_amateur is not None:
        lower_log_probs = lower.float().log_softmax(-1)
        contrasts = _subtract_amateur(lower_log_probs, lower_amateur_weight, lower_amateur)
        if fusion == "entropy":
            scores = fuse_by_entropy(scores, contrasts, torch.cat([log_probs[None], lower_log_probs]), layers)
        else:
            scores = fuse_statically(scores, contrasts, fusion_weight, layers)
    return _exclude_and_mask(scores, refocused_logits, alpha, lower, layers)


def refocused(expert: Tensor, guided: Tensor | None, weight: Setting) -> Tensor:
    """Compute (1 + γ)·guided - γ·expert on logits (..., vocab), -inf where either is; without guidance the expert's.

    Args:
        expert: (..., vocab), any float dtype.
        guided: (..., vocab), or None.
        weight: γ, a number or (...) one a row; 0 gives the guided logits as they are.

    Returns:
        (..., vocab) float32.
    """
    require_one_a_row(expert, refocus_weight=weight)
    expert = expert.float()
    if guided is None:
        return expert
    guided = guided.float()
    if isinstance(weight, Tensor):
        gamma = column(weight)
        logits = torch.where(gamma == 0, guided, torch.lerp(expert, guided, 1.0 + gamma))
        return _exclude(logits, guided, expert[None], (weight != 0)[None])
    return guided if weight == 0 else _exclude(torch.lerp(expert, guided, 1.0 + weight), guided, expert[None])


def fuse_statically(final: Tensor, lower: Tensor, weight: Setting, layers: Tensor | None = None) -> Tensor:
    """Compute F + ω·mean over L of F'_L from contrasts of the final layer and of the lower ones.

    Args:
        final: (..., vocab), F.
        lower: (layers, ..., vocab), F'_L.
        weight: ω, a number or (...) one a row; 0 leaves the lower layers out.
        layers: (layers, ...) bool, the lower layers that count in each row; None for all. A row without one is F.

    Returns:
        (..., vocab) float32.
    """
    require_one_a_row(final, fusion_weight=weight)
    final, lower = final.float(), lower.float()
    if layers is None and not isinstance(weight, Tensor):
        return final if weight == 0 else final + weight * lower.mean(0)
    counted = torch.ones_like(lower[..., :1], dtype=torch.bool) if layers is None else layers[..., None]
    mean = torch.where(counted, lower, 0.0).sum(0) / counted.sum(0).clamp_min(1)
    weight = column(weight) if isinstance(weight, Tensor) else weight
    return torch.where(counted.any(0) & (weight != 0), final + weight * mean, final)


def fuse_by_entropy(final: Tensor, lower: Tensor, expert_log_probs: Tensor, layers: Tensor | None = None) -> Tensor:
    """Compute Σ w·F over the contrasts of all layers, w = softmax over layers of -entropy of the expert's distribution.

    Args:
        final: (..., vocab), contrast of the final layer.
        lower: (layers, ..., vocab), contrasts of the lower layers.
        expert_log_probs: (1 + layers, ..., vocab), the expert's log-probabilities, those of the final layer first.
        layers: (layers, ...) bool, the lower layers that count in each row; None for all.

    Returns:
        (..., vocab) float32.
    """
    log_probs = expert_log_probs.float()
    terms = torch.where(log_probs > SMALLEST_LOG, exp_of_logs(log_probs) * log_probs, 0.0)
    entropy = -terms.sum(-1)  # (1 + layers, ...)
    contrasts = torch.cat([final.float()[None], lower.float()])
    if layers is not None:
        left_out = torch.cat([torch.zeros_like(layers[:1]), ~layers])
        entropy = entropy.masked_fill(left_out, torch.inf)  # weight 0
        contrasts = contrasts.masked_fill(left_out[..., None], 0.0)
    weights = (-entropy).softmax(0)[..., None]
    return (weights * contrasts).sum(0)


def plausible(logits: Tensor, alpha: Setting) -> Tensor:
    """Find the tokens with p >= α·max p (adaptive plausibility, Li et al., 2210.15097, eq. 2).

    Args:
        logits: (..., vocab), the expert's logits or log-probabilities.
        alpha: in [0, 1], a number or (...) one a row; 0 lets every token with a finite logit pass.

    Returns:
        (..., vocab) bool; the most probable token always passes.
    """
    require_one_a_row(logits, alpha=alpha)
    logits = logits.float()
    best = logits.amax(-1, keepdim=True)
    if isinstance(alpha, Tensor):
        # With α = 0 the least float32 is the limit, or -inf in a row without a finite logit.
        lowest = best.fmin(best.new_full((), torch.finfo(best.dtype).min))
        return logits >= torch.where(column(alpha) > 0, best + column(log_of(alpha)), lowest)
    if alpha <= 0:
        return (logits > -torch.inf) | (logits == best)
    return logits >= best + log_of(alpha)


def masked(scores: Tensor, plausibility_logits: Tensor, alpha: Setting | None) -> Tensor:
    """Mask scores with -inf where a token is not plausible.

    Where every plausible token of a row is excluded, plausibility is computed again among the tokens that are left.

    Args:
        scores: (..., vocab), -inf where a token is already excluded.
        plausibility_logits: (..., vocab), the logits whose plausibility counts.
        alpha: in [0, 1], a number or (...) one a row; None lets every token pass.

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


def _subtract_amateur(
    log_probs: Tensor, weight: Setting, amateur: Tensor, temperature: Setting = 1.0, in_place: bool = False
) -> Tensor:
    """Subtract the amateur's weighted log-probabilities; with weight 0 its -inf are ignored.

    Args:
        log_probs: (..., vocab) or (layers, ..., vocab) float32, the expert's.
        weight: a number, or (...) one a row.
        amateur: logits of the same shape.
        temperature: of the amateur, a number or (...) one a row.
        in_place: whether ``log_probs`` may be written.

    Returns:
        The shape of ``log_probs``, float32.
    """
    if not isinstance(weight, Tensor) and weight == 0:
        return log_probs
    amateur = amateur.float()
    if isinstance(temperature, Tensor):
        amateur = amateur / column(temperature)
    elif temperature != 1:
        amateur = amateur / temperature
    amateur = amateur.log_softmax(-1)
    if isinstance(weight, Tensor):
        weight = column(weight)
        return torch.where(weight == 0, log_probs, log_probs.addcmul(amateur, -weight))  # rounds as sub with alpha
    return log_probs.sub_(amateur, alpha=weight) if in_place else log_probs.sub(amateur, alpha=weight)


def _exclude_and_mask(
    scores: Tensor, expert: Tensor, alpha: Setting | None, lower: Tensor | None = None, layers: Tensor | None = None
) -> Tensor:
    """Set scores to -inf where a layer of the expert excludes the token or the token is not plausible."""
    if alpha is None or lower is not None:  # else the mask covers it: an excluded token is not plausible
        scores = _exclude(scores, expert, lower, layers)
    return masked(scores, expert, alpha)


def _exclude(scores: Tensor, expert: Tensor, others: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
    """Set scores (..., vocab) to -inf, in place, where the expert or any of (n, ..., vocab) others is.

    With ``counted``, (n, ...) bool, a row's others are only those that are True there.
    """
    # An expert's -inf makes the score -inf by itself, except against another infinity, which shows in the maximum.
    # Checking the maximum takes a tenth of the time on a CPU; on a GPU it would make the host wait.
    if scores.is_cpu and scores.amax().item() < math.inf:
        return scores
    scores.masked_fill_(expert.isneginf(), -torch.inf)
    if others is None:
        return scores
    excluded = others.isneginf() if counted is None else others.isneginf() & counted[..., None]
    return scores.masked_fill_(excluded.any(0), -torch.inf)
