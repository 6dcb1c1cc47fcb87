"""The degeneration penalty of contrastive search: the largest cosine of each candidate with what came before."""

from __future__ import annotations

from torch import Tensor

from decoding.kernels.backend import choose
from decoding.kernels.degeneration_penalty.eager import degeneration_penalty_eager, inverse_norms
from decoding.kernels.degeneration_penalty.naive import degeneration_penalty_naive

__all__ = ["degeneration_penalty", "degeneration_penalty_naive", "inverse_norms"]


def degeneration_penalty(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Degeneration penalty of Su et al. (NeurIPS 2022, eq. 2): max over j of cos(h_v, h_j).

    Args:
        candidates: (batch, k, dim), hidden states of the candidate tokens, any float dtype.
        history: (batch, capacity, dim), hidden states of prompt and generated tokens, same dtype.
        history_inverse_norms: (batch, capacity) float32, 1 / norm of each, 0 for zero vectors (:func:`inverse_norms`).
        start: (batch,) first slot of each row that counts; None is 0 for all.
        length: (batch,), or one number for all rows: slots from here on do not count, whatever they hold; None is all.
        backend: "auto" or "torch".

    Returns:
        (batch, k) float32 in [-1, 1]. A zero vector has cosine 0 with everything; a row without history has penalty 0.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run (``BackendError``).
    """
    if candidates.dim() != 3 or history.dim() != 3 or candidates.shape[::2] != history.shape[::2]:
        raise ValueError(
            f"candidates {tuple(candidates.shape)} and history {tuple(history.shape)}: accepted are (batch, k, dim) "
            "and (batch, capacity, dim) with the same batch and dim"
        )
    if history_inverse_norms.shape != history.shape[:2]:
        raise ValueError(
            f"history_inverse_norms {tuple(history_inverse_norms.shape)}: accepted is (batch, capacity) = "
            f"{tuple(history.shape[:2])}"
        )
    choose(backend, history.device)
    return degeneration_penalty_eager(candidates, history, history_inverse_norms, start, length)
