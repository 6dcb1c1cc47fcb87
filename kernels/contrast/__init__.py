"""The contrastive family's scores: expert against amateur, in every form, with the plausibility mask.

Logits are (..., vocab), one step (batch, vocab) and teacher forcing (batch, time, vocab) alike, any float dtype, rows
of any stride; scores are float32. With ``alpha`` the tokens with p < α·max p of the expert are -inf (adaptive
plausibility, Li et al., 2210.15097, eq. 2); None lets every token pass.

A token that the expert excludes (-inf, in any of its layers that count) has score -inf, whatever the amateur says of
it; where that leaves a row without a plausible token, plausibility is taken anew among the others. One that only the
amateur excludes has score +inf, as the formula has it; without weight the amateur has no say.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from decoding.kernels.backend import Backend, choose
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
from decoding.kernels.contrast.naive import contrast_log_probs_naive, contrast_logits_naive, multi_layer_contrast_naive

__all__ = [
    "contrast_log_probs",
    "contrast_log_probs_naive",
    "contrast_logits",
    "contrast_logits_naive",
    "fuse_by_entropy",
    "fuse_statically",
    "masked",
    "multi_layer_contrast",
    "multi_layer_contrast_naive",
    "plausible",
    "refocused",
]

FUSIONS = ("static", "entropy")


def contrast_logits(
    expert: Tensor, amateur: Tensor, beta: float, alpha: float | None = None, backend: Backend = "auto"
) -> Tensor:
    """(1 + β)·s_e - β·s_a on raw logits (O'Brien and Lewis, 2309.09117, eq. 3).

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), likewise.
        beta: β >= 0.
        alpha: of plausibility, in [0, 1]; None lets every token pass.
        backend: "auto", "triton" or "torch".

    Returns:
        (..., vocab) float32.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run (``BackendError``).
    """
    _check_shapes(expert, amateur=amateur)
    if choose(backend, expert.device) == "torch":
        return contrast_logits_eager(expert, amateur, beta, alpha)
    return _triton(expert, amateur, normalized=False, expert_weight=1.0 + beta, amateur_weight=beta, alpha=alpha)


def contrast_log_probs(
    expert: Tensor,
    amateur: Tensor,
    beta: float = 1.0,
    amateur_temperature: float = 1.0,
    alpha: float | None = None,
    layer: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Log p_e - β·log p_a(τ), each a log-softmax of logits (Li et al., eq. 1; β is ours, 1 there).

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), likewise; with ``layer`` (layers, ..., vocab).
        beta: β >= 0.
        amateur_temperature: τ > 0.
        alpha: of plausibility, in [0, 1]; None lets every token pass.
        layer: (...) int64, which of the amateur's layers each row is contrasted with, as with DoLa's premature layers;
            they are read where they lie.
        backend: "auto", "triton" or "torch".

    Returns:
        (..., vocab) float32.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run (``BackendError``).
    """
    if layer is None:
        _check_shapes(expert, amateur=amateur)
    else:
        _check_shapes(expert, amateur_layers=amateur)
        if layer.shape != expert.shape[:-1]:
            raise ValueError(f"layer {tuple(layer.shape)}: accepted is one a row, {tuple(expert.shape[:-1])}")
    if choose(backend, expert.device) == "torch":
        return contrast_log_probs_eager(expert, amateur, beta, amateur_temperature, alpha, layer)
    return _triton(
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
    """LOL's contrast at the final layer, refocused by guidance, fused with the contrasts at lower layers (2408.08769).

    With r = log-softmax((1 + γ)·guided - γ·expert), or log-softmax(expert) without guidance, the contrasts are
    F = r - λ·log p_a and F'_L = log p_L - λ'·log p_a,L. Static fusion is F + ω·mean F'_L; entropy fusion is Σ w·F over
    all, w the softmax over these of -entropy of r and of each p_L. Plausibility is that of r.

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), likewise.
        guided: (..., vocab) of the expert behind guidance; a token that it or the expert excludes is excluded.
        lower: (layers, ..., vocab) of the expert's lower layers.
        lower_amateur: (layers, ..., vocab) of the amateur's; given where ``lower`` is.
        amateur_weight: λ >= 0.
        lower_amateur_weight: λ' >= 0.
        fusion_weight: ω >= 0, of static fusion; 0 leaves the lower layers out.
        fusion: "static" or "entropy".
        refocus_weight: γ >= 0.
        alpha: of plausibility, in [0, 1]; None lets every token pass.
        backend: "auto", "triton" or "torch".

    Returns:
        (..., vocab) float32.

    Raises:
        ValueError: shapes that do not fit, an unknown fusion, or a backend that cannot run (``BackendError``).
    """
    _check_shapes(expert, amateur=amateur, guided=guided, lower_layers=lower, lower_amateur_layers=lower_amateur)
    if (lower is None) != (lower_amateur is None) or (
        lower is not None and lower_amateur is not None and len(lower) != len(lower_amateur)
    ):
        raise ValueError("lower and lower_amateur: accepted are both, with as many layers, or neither")
    if fusion not in FUSIONS:
        raise ValueError(f"fusion={fusion!r}: accepted are {', '.join(FUSIONS)}")
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
    return _triton(
        expert, amateur, guided=guided, lower=lower, lower_amateur=lower_amateur,
        lower_weight=lower_weight, by_entropy=by_entropy, **weights,
    )  # fmt: skip


def _triton(*args: Any, **kwargs: Any) -> Tensor:
    from decoding.kernels.contrast.triton import contrast_triton

    return contrast_triton(*args, **kwargs)


def _check_shapes(expert: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless all have the expert's shape, those called layers behind a dimension of their own."""
    for name, each in others.items():
        if each is not None and each.shape[name.endswith("layers") :] != expert.shape:
            layers = "layers, " if name.endswith("layers") else ""
            raise ValueError(
                f"{name.removesuffix('_layers')} {tuple(each.shape)} and expert {tuple(expert.shape)}: accepted are "
                f"({layers}..., vocab) and (..., vocab) with the same batch and vocab"
            )
