"""Scores of the contrastive family: expert against amateur, with the plausibility mask.

Logits are (..., vocab) in any float dtype, with rows of any stride: (batch, vocab) for one step, (batch, time, vocab)
for teacher forcing. Scores are float32. With ``alpha``, tokens with p < α·max p of the expert score -inf (adaptive
plausibility, Li et al., 2210.15097, eq. 2); None masks no token.

Infinite logits:

- A token that the expert excludes (-inf, in any of its layers that are used) scores -inf, whatever the amateur's logit.
  Where that leaves a row without a plausible token, plausibility is computed again among the other tokens.
- A token that only the amateur excludes scores +inf, as the formula says.
- With weight 0 the amateur's logits are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from decoding.kernels.backend import Backend, BackendError, choose
from decoding.kernels.contrast.eager import (
    contrast_log_probs_eager,
    contrast_logits_eager,
    fuse_by_entropy,
    fuse_statically,
    masked,
    multi_layer_contrast_eager,
    plausible,
    refocused,
)
from decoding.kernels.contrast.naive import (
    contrast_log_probs_naive,
    contrast_logits_naive,
    multi_layer_contrast_naive,
    weighted_contrast_naive,
)
from decoding.kernels.contrast.weighted import FORMS, divergence, entropy, weighted_contrast_eager

__all__ = [
    "contrast_log_probs",
    "contrast_log_probs_naive",
    "contrast_logits",
    "contrast_logits_naive",
    "divergence",
    "entropy",
    "fuse_by_entropy",
    "fuse_statically",
    "masked",
    "multi_layer_contrast",
    "multi_layer_contrast_naive",
    "plausible",
    "refocused",
    "weighted_contrast",
    "weighted_contrast_naive",
]

FUSIONS = ("static", "entropy")


def contrast_logits(
    expert: Tensor, amateur: Tensor, beta: float, alpha: float | None = None, backend: Backend = "auto"
) -> Tensor:
    """Compute (1 + β)·s_e - β·s_a on raw logits (O'Brien and Lewis, 2309.09117, eq. 3).

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), any float dtype.
        beta: β >= 0.
        alpha: plausibility threshold in [0, 1]; None lets every token pass.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.

    Returns:
        (..., vocab) float32.

    Raises:
        ValueError: shapes do not fit, or the backend cannot run (``BackendError``).
    """
    _check_shapes(expert, amateur=amateur)
    if choose(backend, expert.device) == "torch":
        return contrast_logits_eager(expert, amateur, beta, alpha)
    return _contrast_triton(
        expert, amateur, normalized=False, expert_weight=1.0 + beta, amateur_weight=beta, alpha=alpha
    )


def contrast_log_probs(
    expert: Tensor,
    amateur: Tensor,
    beta: float = 1.0,
    amateur_temperature: float = 1.0,
    alpha: float | None = None,
    layer: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Compute log p_e - β·log p_a(τ), each a log-softmax of logits (Li et al., eq. 1, where β = 1; β is ours).

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), any float dtype; with ``layer`` (layers, ..., vocab).
        beta: β >= 0.
        amateur_temperature: τ > 0.
        alpha: plausibility threshold in [0, 1]; None lets every token pass.
        layer: (...) int64, the amateur's layer that each row is contrasted with, such as DoLa's premature layer; the
            layers are read where they are, without a copy.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.

    Returns:
        (..., vocab) float32.

    Raises:
        ValueError: shapes do not fit, or the backend cannot run (``BackendError``).
    """
    if layer is None:
        _check_shapes(expert, amateur=amateur)
    else:
        _check_shapes(expert, amateur_layers=amateur)
        if layer.shape != expert.shape[:-1]:
            raise ValueError(f"layer must hold one index a row, {tuple(expert.shape[:-1])}, got {tuple(layer.shape)}")
    if choose(backend, expert.device) == "torch":
        return contrast_log_probs_eager(expert, amateur, beta, amateur_temperature, alpha, layer)
    return _contrast_triton(
        expert, amateur, layer=layer, amateur_weight=beta, amateur_temperature=amateur_temperature, alpha=alpha
    )


def multi_layer_contrast(
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
    backend: Backend = "auto",
) -> Tensor:
    """Compute LOL's contrast at the final layer, refocused by guidance and fused with lower layers (2408.08769).

    With r = log-softmax((1 + γ)·guided - γ·expert), or log-softmax(expert) without guidance, the contrasts are
    F = r - λ·log p_a and F'_L = log p_L - λ'·log p_a,L. Static fusion is F + ω·mean F'_L. Entropy fusion is Σ w·F over
    all contrasts, where w is the softmax over them of -entropy of r and of each p_L. Plausibility is that of r.

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), any float dtype.
        guided: (..., vocab), the expert with guidance in its context; a token that it or the expert excludes is
            excluded.
        lower: (layers, ..., vocab), lower layers of the expert.
        lower_amateur: (layers, ..., vocab), lower layers of the amateur; given if ``lower`` is.
        amateur_weight: λ >= 0.
        lower_amateur_weight: λ' >= 0.
        fusion_weight: ω >= 0 of static fusion; 0 leaves the lower layers out.
        fusion: "static" or "entropy".
        refocus_weight: γ >= 0.
        alpha: plausibility threshold in [0, 1]; None lets every token pass.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.

    Returns:
        (..., vocab) float32.

    Raises:
        ValueError: shapes do not fit, the fusion is unknown, or the backend cannot run (``BackendError``).
    """
    _check_shapes(expert, amateur=amateur, guided=guided, lower_layers=lower, lower_amateur_layers=lower_amateur)
    if (lower is None) != (lower_amateur is None) or (
        lower is not None and lower_amateur is not None and len(lower) != len(lower_amateur)
    ):
        raise ValueError("lower and lower_amateur must be both given, with the same number of layers, or both None")
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    if lower is None or (fusion == "static" and fusion_weight == 0):
        lower, lower_amateur, fusion = None, None, "static"
    weights: dict[str, Any] = {
        "amateur_weight": amateur_weight, "lower_amateur_weight": lower_amateur_weight,
        "refocus_weight": refocus_weight, "alpha": alpha,
    }  # fmt: skip
    if choose(backend, expert.device) == "torch":
        return multi_layer_contrast_eager(
            expert, amateur, guided, lower, lower_amateur, fusion_weight=fusion_weight, fusion=fusion, **weights
        )
    lower_weight = 0.0 if lower is None else fusion_weight / len(lower)
    by_entropy = fusion == "entropy"
    return _contrast_triton(
        expert, amateur, guided=guided, lower=lower, lower_amateur=lower_amateur,
        lower_weight=lower_weight, by_entropy=by_entropy, **weights,
    )  # fmt: skip


def weighted_contrast(
    logits: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    form: str = "logits",
    temperatures: Sequence[float] | None = None,
    alpha: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Compute Σ w·s over readers, under the plausibility of the first.

    Args:
        logits: of each reader, (..., vocab), any float dtype, on one device; the first is the reader whose plausibility
            counts.
        weights: of each, a number, or (...) one a row.
        form: of s: "logits", or "log_probs", each a log-softmax.
        temperatures: τ > 0 of each reader, which its logits are divided by; None for 1.
        alpha: plausibility threshold in [0, 1]; None lets every token pass.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`. The Triton form is of two
            readers with fixed weights, the second one's negative.

    Returns:
        (..., vocab) float32. A reader of weight 0 is ignored, its -inf with it. A token scores -inf where the first
        reader excludes it (-inf), or one with a positive weight, and +inf where only one with a negative weight does.

    Raises:
        ValueError: shapes do not fit, the form is unknown, or the backend cannot run (``BackendError``).
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    temperatures = [1.0] * len(logits) if temperatures is None else temperatures
    if not len(logits) == len(weights) == len(temperatures) or not logits:
        raise ValueError(f"{len(logits)} readers, {len(weights)} weights and {len(temperatures)} temperatures")
    _check_shapes(logits[0], **{f"reader {i}": reader for i, reader in enumerate(logits)})
    fixed = [weight for weight in weights if not isinstance(weight, Tensor)]
    if len(logits) == len(fixed) == 2:
        (own, other), (first, second) = fixed, logits
        tempered = temperatures[0] != 1 or (form == "logits" and temperatures[1] != 1)
        if own >= 0 >= other and not tempered:
            if form == "logits" and math.isclose(own, 1.0 - other, rel_tol=1e-12):
                return contrast_logits(first, second, -other, alpha, backend)
            if form == "log_probs" and own == 1:
                return contrast_log_probs(first, second, -other, temperatures[1], alpha, backend=backend)
    if backend == "triton":
        raise BackendError(
            "backend='triton': there is a form of two readers alone, with fixed weights, the second one's negative; "
            "use 'auto' or 'torch'"
        )
    return weighted_contrast_eager(logits, weights, form, temperatures, alpha)


def _contrast_triton(*args: Any, **kwargs: Any) -> Tensor:
    from decoding.kernels.contrast.fused import contrast_triton

    return contrast_triton(*args, **kwargs)


def _check_shapes(expert: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless all have the expert's shape, after a dimension of layers if the name ends in "layers"."""
    for name, logits in others.items():
        if logits is not None and logits.shape[name.endswith("layers") :] != expert.shape:
            layers = "layers, " if name.endswith("layers") else ""
            raise ValueError(
                f"{name.removesuffix('_layers')} must be ({layers}..., vocab) with the batch and vocab of expert "
                f"{tuple(expert.shape)}, got {tuple(logits.shape)}"
            )
