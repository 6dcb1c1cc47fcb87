"""The choice of contrastive search: from the candidates' probabilities and hidden states to the token of each row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from decoding.kernels.backend import BackendError, choose
from decoding.kernels.degeneration_penalty import check_shapes
from decoding.kernels.selection.eager import contrastive_scores, select_eager
from decoding.kernels.selection.naive import select_naive

__all__ = ["Selection", "contrastive_scores", "select", "select_naive"]

MAX_CANDIDATES = 1024  # that one program of the kernel holds


@dataclass(frozen=True)
class Selection:
    """The candidate chosen for each row.

    Attributes:
        token: (batch,) int64 token ids.
        branch: (batch,) int64 index among the k candidates.
        score: (batch,) float32 contrastive score; -inf where no candidate may be chosen (the token is then the one with
            the lowest id).
    """

    token: Tensor
    branch: Tensor
    score: Tensor


def select(
    logits: Tensor,
    probabilities: Tensor,
    candidates: Tensor,
    penalty_alpha: float | Tensor,
    hidden: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    backend: str = "auto",
    *,
    counts: Tensor | None = None,
) -> Selection:
    """Choose the candidate with the largest (1 - α)·p(v) - α·max_j cos(h_v, h_j); of equal ones the lowest token id.

    On a GPU these are two launches, the last reduction of the penalty included, and the host does not wait for them.

    Args:
        logits: (batch, vocab), any float dtype; a candidate whose logit is -inf is never chosen.
        probabilities: (batch, k) float32, of the candidates.
        candidates: (batch, k) int64 token ids, different ones in each row.
        penalty_alpha: α in [0, 1]; one number, or (batch,) float32 with one for each row.
        hidden: (batch, k, dim), hidden states of the candidates.
        history: (batch, capacity, dim); it, ``history_inverse_norms``, ``start`` and ``length`` as in
            :func:`decoding.kernels.degeneration_penalty.degeneration_penalty`.
        history_inverse_norms: (batch, capacity) float32.
        start: (batch,) or None.
        length: (batch,), one number, or None.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.
        counts: (batch,) int64, how many of each row's candidates, the first ones, may be chosen; None is all.

    Returns:
        Token, branch and score of each row.

    Raises:
        ValueError: shapes do not fit, or the backend cannot run (``BackendError``).
    """
    check_shapes(hidden, history, history_inverse_norms, name="hidden")
    if not candidates.shape == probabilities.shape == hidden.shape[:2]:
        raise ValueError(
            f"candidates and probabilities must be (batch, k) = {tuple(hidden.shape[:2])}, got "
            f"{tuple(candidates.shape)} and {tuple(probabilities.shape)}"
        )
    for name, of_rows in (("penalty_alpha", penalty_alpha), ("counts", counts)):
        if isinstance(of_rows, Tensor) and of_rows.shape != hidden.shape[:1]:
            raise ValueError(f"{name} must be one for each row, ({len(hidden)},), got {tuple(of_rows.shape)}")
    k = candidates.shape[1]
    chosen_backend = choose(backend, history.device)
    if backend == "triton" and k > MAX_CANDIDATES:
        raise BackendError(
            f"backend='triton': candidates must be at most {MAX_CANDIDATES} a row, got {k}; 'auto' runs any number"
        )
    arguments = logits, probabilities, candidates, penalty_alpha, hidden, history, history_inverse_norms, start, length
    if chosen_backend == "triton" and k <= MAX_CANDIDATES:
        from decoding.kernels.selection.fused import select_triton

        return Selection(*select_triton(*arguments, counts=counts))
    return Selection(*select_eager(*arguments, backend=chosen_backend, counts=counts))
