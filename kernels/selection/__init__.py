"""The choice of contrastive search: from the candidates' probabilities and hidden states to the token of each row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from decoding.kernels.backend import BackendError, choose
from decoding.kernels.degeneration_penalty import check_shapes
from decoding.kernels.selection.eager import contrastive_scores, select_eager
from decoding.kernels.selection.naive import select_naive

__all__ = ["Selection", "contrastive_scores", "select", "select_naive"]

MOST = 1024  # candidates that one program of the kernel holds


@dataclass(frozen=True)
class Selection:
    """What was chosen for each row.

    Attributes:
        token: (batch,) int64 token ids.
        branch: (batch,) int64, which of the k candidates that is.
        score: (batch,) float32, its contrastive score; -inf where no candidate may be chosen (the token is then the
            one with the lowest id).
    """

    token: Tensor
    branch: Tensor
    score: Tensor


def select(
    logits: Tensor,
    probabilities: Tensor,
    candidates: Tensor,
    penalty_alpha: float,
    hidden: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    backend: str = "auto",
) -> Selection:
    """The candidate with the largest (1 - α)·p(v) - α·max_j cos(h_v, h_j); of equals the one with the lowest token id.

    On a GPU these are two launches, the penalty's last reduction among them, and nothing waits for them.

    Args:
        logits: (batch, vocab), any float dtype; a candidate whose logit is -inf is never chosen.
        probabilities: (batch, k) float32, of the candidates.
        candidates: (batch, k) int64 token ids, different ones in each row.
        penalty_alpha: α in [0, 1].
        hidden: (batch, k, dim), the candidates' hidden states.
        history: (batch, capacity, dim); it, ``history_inverse_norms``, ``start`` and ``length`` as in
            :func:`decoding.kernels.degeneration_penalty.degeneration_penalty`.
        history_inverse_norms: (batch, capacity) float32.
        start: (batch,) or None.
        length: (batch,), one number, or None.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run (``BackendError``).
    """
    check_shapes(hidden, history, history_inverse_norms)
    if not candidates.shape == probabilities.shape == hidden.shape[:2]:
        raise ValueError(
            f"candidates {tuple(candidates.shape)}, probabilities {tuple(probabilities.shape)}: accepted is (batch, k) "
            f"= {tuple(hidden.shape[:2])}"
        )
    k = candidates.shape[1]
    chosen = choose(backend, history.device)
    if backend == "triton" and k > MOST:
        raise BackendError(f"backend='triton': {k} candidates; the kernel takes up to {MOST}, 'auto' any number")
    arguments = logits, probabilities, candidates, penalty_alpha, hidden, history, history_inverse_norms, start, length
    if chosen == "triton" and k <= MOST:
        from decoding.kernels.selection.triton import select_triton

        return Selection(*select_triton(*arguments))
    return Selection(*select_eager(*arguments, backend=chosen))
