"""How far premature layers are from the final one, and which of them is farthest: DoLa's choice of layer."""

from __future__ import annotations

from torch import Tensor

from decoding.kernels.backend import Backend, choose
from decoding.kernels.layer_divergence.eager import layer_divergence_eager
from decoding.kernels.layer_divergence.naive import layer_divergence_naive

__all__ = ["KINDS", "layer_divergence", "layer_divergence_naive"]

KINDS = ("dola", "jensen-shannon")


def layer_divergence(
    final: Tensor, premature: Tensor, kind: str = "dola", per_row: bool = True, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Divergence of each premature layer's next-token distribution from the final layer's, and the largest.

    Args:
        final: (batch, ..., vocab) logits of the final layer, any float dtype.
        premature: (layers, batch, ..., vocab) logits of the premature ones, likewise.
        kind: "dola" is ½[KL(M‖p_N) + KL(M‖p_j)], M the average of the two, which is what DoLa's public code computes
            (Chuang et al., 2309.03883); "jensen-shannon" the textbook's ½[KL(p_N‖M) + KL(p_j‖M)].
        per_row: True chooses a layer for each row; False one for the batch, by the mean over its rows.
        backend: "auto", "triton" or "torch".

    Returns:
        (layers, batch, ...) float32 divergences in nats, and (batch, ...) int64 the layer with the largest, the first
        of equal ones. A token that both layers exclude (-inf) adds nothing; one that only one of them excludes makes
        "dola" infinite.

    Raises:
        ValueError: shapes that do not fit, another kind, or a backend that cannot run (``BackendError``).
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: accepted are {', '.join(KINDS)}")
    if premature.shape[1:] != final.shape or premature.dim() < 2 or len(premature) == 0:
        raise ValueError(
            f"final {tuple(final.shape)} and premature {tuple(premature.shape)}: accepted are (..., vocab) and "
            "(layers, ..., vocab) with the same batch and vocab, and at least one layer"
        )
    if choose(backend, final.device) == "torch":
        divergences = layer_divergence_eager(final, premature, kind)
        chosen = divergences.argmax(0)
    else:
        from decoding.kernels.layer_divergence.triton import layer_divergence_triton

        divergences, chosen = layer_divergence_triton(final, premature, kind)
    if not per_row:
        chosen = divergences.mean(1, keepdim=True).argmax(0).expand(final.shape[:-1])
    return divergences, chosen
