"""Scores of the contrastive family: expert against amateur, with the plausibility mask.

Logits are (..., vocab) in any float dtype, with rows of any stride: (batch, vocab) for one step, (batch, time, vocab)
for teacher forcing. Scores are float32. With ``alpha``, tokens with p < α·max p of the expert score -inf (adaptive
plausibility, Li et al., 2210.15097, eq. 2); None masks no token.

Settings (weights, temperatures, ``alpha``) are numbers, or tensors (...) of float32 on the logits' device with one for
each row, whose scores are then those that it has alone with its numbers.

Infinite logits:

- A token that the expert excludes (-inf, in any of its layers that count in the row) scores -inf, whatever the
  amateur's logit. Where that leaves a row without a plausible token, plausibility is computed again among the others.
- A token that only the amateur excludes scores +inf, as the formula says.
- With weight 0 the amateur's logits are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
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
from decoding.kernels.contrast.settings import Setting, require_one_a_row
from decoding.kernels.contrast.weighted import FORMS, divergence, drawn_to_first, entropy, weighted_contrast_eager

__all__ = [
    "contrast_log_probs",
    "contrast_log_probs_naive",
    "contrast_logits",
    "contrast_logits_naive",
    "divergence",
    "drawn_to_first",
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
    expert: Tensor, amateur: Tensor, beta: Setting, alpha: Setting | None = None, backend: Backend = "auto"
) -> Tensor:
    """Compute (1 + β)·s_e - β·s_a on raw logits (O'Brien and Lewis, 2309.09117, eq. 3).

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), any float dtype.
        beta: β >= 0, a number or (...) one a row.
        alpha: plausibility threshold in [0, 1], a number or (...) one a row; None lets every token pass.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.

    Returns:
        (..., vocab) float32.

    Raises:
        ValueError: shapes do not fit, or the backend cannot run (``BackendError``).
    """
    _check_shapes(expert, amateur=amateur)
    require_one_a_row(expert, beta=beta, alpha=alpha)
    if choose(backend, expert.device) == "torch":
        return contrast_logits_eager(expert, amateur, beta, alpha)
    return _contrast_triton(
        expert, amateur, normalized=False, expert_weight=1.0 + beta, amateur_weight=beta, alpha=alpha
    )


def contrast_log_probs(
    expert: Tensor,
    amateur: Tensor,
    beta: Setting = 1.0,
    amateur_temperature: Setting = 1.0,
    alpha: Setting | None = None,
    layer: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Compute log p_e - β·log p_a(τ), each a log-softmax of logits (Li et al., eq. 1, where β = 1; β is ours).

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), any float dtype; with ``layer`` (layers, ..., vocab).
        beta: β >= 0, a number or (...) one a row.
        amateur_temperature: τ > 0, a number or (...) one a row.
        alpha: plausibility threshold in [0, 1], a number or (...) one a row; None lets every token pass.
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
    require_one_a_row(expert, beta=beta, amateur_temperature=amateur_temperature, alpha=alpha)
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
    amateur_weight: Setting = 1.0,
    lower_amateur_weight: Setting = 1.0,
    fusion_weight: Setting = 0.5,
    fusion: str = "static",
    refocus_weight: Setting = 0.5,
    alpha: Setting | None = None,
    layers: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Compute LOL's contrast at the final layer, refocused by guidance and fused with lower layers (2408.08769).

    With r = log-softmax((1 + γ)·guided - γ·expert), or log-softmax(expert) without guidance, the contrasts are
    F = r - λ·log p_a and F'_L = log p_L - λ'·log p_a,L. Static fusion is F + ω·mean F'_L. Entropy fusion is Σ w·F over
    all contrasts, where w is the softmax over them of -entropy of r and of each p_L. Plausibility is that of r. The
    weights and ``alpha`` are numbers, or (...) one a row.

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), any float dtype.
        guided: (..., vocab), the expert with guidance in its context; a token that it or the expert excludes is
            excluded.
        lower: (layers, ..., vocab), lower layers of the expert.
        lower_amateur: (layers, ..., vocab), lower layers of the amateur; given if ``lower`` is.
        amateur_weight: λ >= 0.
        lower_amateur_weight: λ' >= 0.
        fusion_weight: ω >= 0 of static fusion; 0 leaves the lower layers out, and a row of 0 its own.
        fusion: "static" or "entropy".
        refocus_weight: γ >= 0; with 0 the expert's logits are ignored where guided ones are given.
        alpha: plausibility threshold in [0, 1]; None lets every token pass.
        layers: (layers, ...) bool, the lower layers that count in each row; None for all. The others take no part in
            its mean or its softmax, and exclude no token there. The scores of a row without any are F.
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
    arguments: dict[str, Any] = {
        "amateur_weight": amateur_weight, "lower_amateur_weight": lower_amateur_weight,
        "refocus_weight": refocus_weight, "alpha": alpha,
    }  # fmt: skip
    require_one_a_row(expert, fusion_weight=fusion_weight, **arguments)
    _check_layers(layers, lower, expert)
    if lower is None or (fusion == "static" and not isinstance(fusion_weight, Tensor) and fusion_weight == 0):
        lower = lower_amateur = layers = None
        fusion, fusion_weight = "static", 0.0
    elif fusion == "static" and isinstance(fusion_weight, Tensor):
        with_weight = (fusion_weight != 0).expand(len(lower), *fusion_weight.shape)
        layers = with_weight if layers is None else layers & with_weight
    arguments |= {"lower": lower, "lower_amateur": lower_amateur, "layers": layers}
    if choose(backend, expert.device) == "torch":
        return multi_layer_contrast_eager(
            expert, amateur, guided, fusion_weight=fusion_weight, fusion=fusion, **arguments
        )
    if layers is not None:
        fusion_weight = fusion_weight / layers.sum(0).clamp_min(1)
    elif lower is not None:
        fusion_weight = fusion_weight / len(lower)
    return _contrast_triton(
        expert, amateur, guided=guided, lower_weight=fusion_weight, by_entropy=fusion == "entropy", **arguments
    )


def weighted_contrast(
    logits: Sequence[Tensor],
    weights: Sequence[Setting],
    form: str = "logits",
    temperatures: Sequence[Setting] | None = None,
    alpha: Setting | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Compute Σ w·s over readers, under the plausibility of the first.

    Args:
        logits: of each reader, (..., vocab), any float dtype, on one device; the first is the reader whose plausibility
            counts.
        weights: of each, a number, or (...) one a row.
        form: of s: "logits", or "log_probs", each a log-softmax.
        temperatures: τ > 0 of each reader, which its logits are divided by, a number or (...) one a row; None for 1.
        alpha: plausibility threshold in [0, 1], a number or (...) one a row; None lets every token pass.
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
    # A caller's function of the logits may have computed them on another device.
    weights = [weight.to(logits[0].device) if isinstance(weight, Tensor) else weight for weight in weights]
    for name, settings in (("weight", weights), ("temperature", temperatures)):
        require_one_a_row(logits[0], **{f"{name} of reader {i}": setting for i, setting in enumerate(settings)})
    require_one_a_row(logits[0], alpha=alpha)
    fixed = [weight for weight in weights if not isinstance(weight, Tensor)]
    if len(logits) == len(fixed) == 2:
        (own, other), (first, second) = fixed, logits
        must_be_one = temperatures if form == "logits" else temperatures[:1]
        tempered = any(isinstance(temperature, Tensor) or temperature != 1 for temperature in must_be_one)
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


def _check_layers(layers: Tensor | None, lower: Tensor | None, expert: Tensor) -> None:
    """Raise ValueError unless the choice of lower layers is None, or a bool for each of them and each row."""
    shape = (0 if lower is None else len(lower), *expert.shape[:-1])
    if layers is not None and (layers.shape != shape or layers.dtype != torch.bool or layers.device != expert.device):
        raise ValueError(
            f"layers must be one bool for each lower layer and row, {shape} on {expert.device}, got {layers.dtype} "
            f"{tuple(layers.shape)} on {layers.device}"
        )


def _check_shapes(expert: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless all have the expert's shape, after a dimension of layers if the name ends in "layers"."""
    for name, logits in others.items():
        if logits is not None and logits.shape[name.endswith("layers") :] != expert.shape:
            layers = "layers, " if name.endswith("layers") else ""
            raise ValueError(
                f"{name.removesuffix('_layers')} must be ({layers}..., vocab) with the batch and vocab of expert "
                f"{tuple(expert.shape)}, got {tuple(logits.shape)}"
            )
