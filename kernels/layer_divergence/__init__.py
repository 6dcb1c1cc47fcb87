"""The divergence of premature layers from the final one, and the layer with the largest: DoLa's choice of layer."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.kernels.backend import Backend, choose
from decoding.kernels.layer_divergence.eager import layer_divergence_eager
from decoding.kernels.layer_divergence.naive import layer_divergence_naive

__all__ = ["KINDS", "layer_divergence", "layer_divergence_naive"]

KINDS = ("dola", "jensen-shannon")


def layer_divergence(
    final: Tensor,
    premature: Tensor,
    kind: str = "dola",
    per_row: bool = True,
    backend: Backend = "auto",
    *,
    candidates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute each premature layer's divergence from the final layer's distribution, and choose the farthest layer.

    Args:
        final: (batch, ..., vocab) logits of the final layer, any float dtype.
        premature: (layers, batch, ..., vocab) logits of the premature layers, any float dtype.
        kind: "dola" is ½[KL(M‖p_N) + KL(M‖p_j)] with M the average of the two, as DoLa's public code computes it
            (Chuang et al., 2309.03883); "jensen-shannon" is the textbook's ½[KL(p_N‖M) + KL(p_j‖M)].
        per_row: True chooses a layer for each row; False one for the batch, by the mean over its rows.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.
        candidates: (layers, batch, ...) bool, which layers each row may choose, at least one; None for all. One for the
            batch is chosen among the layers that every row may choose. Where there is none, the choice is layer 0 and
            has no meaning.

    Returns:
        Divergences in nats, (layers, batch, ...) float32, -inf of a layer that the row may not choose, and the layer
        with the largest, (batch, ...) int64, the first of equal ones. A token that both layers exclude (-inf) adds
        nothing; one that only one of them excludes makes "dola" infinite.

    Raises:
        ValueError: shapes do not fit, the kind is unknown, or the backend cannot run (``BackendError``).
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if premature.shape[1:] != final.shape or premature.dim() < 2 or len(premature) == 0:
        raise ValueError(
            "final and premature must be (..., vocab) and (layers, ..., vocab) with the same batch and vocab, and at "
            f"least one layer, got {tuple(final.shape)} and {tuple(premature.shape)}"
        )
    expected = premature.shape[:-1]
    if candidates is not None and (
        candidates.shape != expected or candidates.dtype != torch.bool or candidates.device != final.device
    ):
        raise ValueError(
            f"candidates must be one bool for each layer and row, {tuple(expected)} on {final.device}, got "
            f"{candidates.dtype} {tuple(candidates.shape)} on {candidates.device}"
        )
    if choose(backend, final.device) == "torch":
        divergences = layer_divergence_eager(final, premature, kind, candidates)
        chosen = divergences.argmax(0)
    else:
        from decoding.kernels.layer_divergence.fused import layer_divergence_triton

        divergences, chosen = layer_divergence_triton(final, premature, kind, candidates)
    if not per_row:
        means = divergences.mean(1, keepdim=True)
        if candidates is not None:  # where a row may choose one whose divergence is infinite, and another may not: NaN
            means = means.masked_fill(~candidates.all(1, keepdim=True), -torch.inf)
        chosen = means.argmax(0).expand(final.shape[:-1])
    return divergences, chosen
