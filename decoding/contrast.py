"""The maths that the contrastive family shares: pure functions on logits, without a model in sight.

Every function takes any float dtype and computes in float32. Shapes are (..., vocab): one step (batch, vocab) and
teacher forcing (batch, time, vocab) alike.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from decoding.errors import OptionError

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "context_aware",
    "contrast_log_probs",
    "contrast_logits",
    "divergence",
    "fuse_by_entropy",
    "fuse_statically",
    "plausible",
]

Divergence = Literal["dola", "jensen-shannon"]
DIVERGENCES: tuple[Divergence, ...] = ("dola", "jensen-shannon")


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


def contrast_logits(expert: Tensor, amateur: Tensor, beta: float) -> Tensor:
    """(1 + β)·s_e - β·s_a on raw logits (..., vocab) (O'Brien and Lewis, 2309.09117, eq. 3)."""
    return torch.lerp(amateur.float(), expert.float(), 1.0 + beta)


def contrast_log_probs(expert: Tensor, amateur: Tensor, beta: float = 1.0, amateur_temperature: float = 1.0) -> Tensor:
    """Log p_e - β·log p_a(τ), each a log-softmax of logits (..., vocab) (Li et al., eq. 1; β is ours, 1 there)."""
    amateur_log_probs = (amateur.float() / amateur_temperature).log_softmax(-1)
    return expert.float().log_softmax(-1) - beta * amateur_log_probs


def context_aware(with_context: Tensor, without: Tensor, alpha: float) -> Tensor:
    """(1 + α)·logit(y | c, x) - α·logit(y | x), (..., vocab) (Shi et al., context-aware decoding)."""
    return contrast_logits(with_context, without, alpha)


def divergence(final: Tensor, premature: Tensor, kind: Divergence = "dola") -> Tensor:
    """How far the premature layers' next-token distributions are from the final layer's.

    Args:
        final: (..., vocab) logits of the final layer.
        premature: (layers, ..., vocab) logits of the premature ones.
        kind: "dola" is ½[KL(M‖p_N) + KL(M‖p_j)], M the average of the two, which is what DoLa's public code computes;
            "jensen-shannon" the textbook's ½[KL(p_N‖M) + KL(p_j‖M)].

    Returns:
        (layers, ...) float32, >= 0, in nats.

    Raises:
        OptionError: another kind.
    """
    if kind not in DIVERGENCES:
        raise OptionError(f"divergence={kind!r}: accepted are {', '.join(DIVERGENCES)}")
    final_log = final.float().log_softmax(-1)
    premature_log = premature.float().log_softmax(-1)
    average_log = torch.logaddexp(final_log, premature_log) - math.log(2)
    if kind == "dola":
        average = average_log.exp()
        return 0.5 * (_kl(average, average_log, final_log) + _kl(average, average_log, premature_log))
    return 0.5 * (_kl(final_log.exp(), final_log, average_log) + _kl(premature_log.exp(), premature_log, average_log))


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) over the last dimension. A token that both exclude adds nothing."""
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


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
