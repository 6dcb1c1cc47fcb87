"""The maths that the contrastive family shares: pure functions on logits, without a model in sight.

Every function takes any float dtype and computes in float32. Shapes are (..., vocab): one step (batch, vocab) and
teacher forcing (batch, time, vocab) alike. :mod:`decoding.kernels.contrast` and
:mod:`decoding.kernels.layer_divergence` compute them, fused on a GPU.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from decoding.errors import OptionError
from decoding.kernels.contrast import (
    contrast_log_probs,
    contrast_logits,
    fuse_by_entropy,
    fuse_statically,
    masked,
    multi_layer_contrast,
    plausible,
    refocused,
)
from decoding.kernels.layer_divergence import layer_divergence

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "context_aware",
    "contrast_log_probs",
    "contrast_logits",
    "divergence",
    "fuse_by_entropy",
    "fuse_statically",
    "layer_divergence",
    "masked",
    "multi_layer_contrast",
    "plausible",
    "refocused",
]

Divergence = Literal["dola", "jensen-shannon"]
DIVERGENCES: tuple[Divergence, ...] = ("dola", "jensen-shannon")


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
    return layer_divergence(final, premature, kind)[0]
