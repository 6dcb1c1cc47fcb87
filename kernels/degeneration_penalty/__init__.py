"""The degeneration penalty of contrastive search: the largest cosine of each candidate with the tokens before it."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from decoding.kernels.backend import choose
from decoding.kernels.degeneration_penalty.eager import append_eager, degeneration_penalty_eager, inverse_norms
from decoding.kernels.degeneration_penalty.naive import degeneration_penalty_naive

__all__ = ["append", "check_shapes", "degeneration_penalty", "degeneration_penalty_naive", "inverse_norms"]


@overload
def degeneration_penalty(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    backend: str = "auto",
    positions: Literal[False] = False,
) -> Tensor: ...


@overload
def degeneration_penalty(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    backend: str = "auto",
    *,
    positions: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def degeneration_penalty(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    backend: str = "auto",
    positions: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute the degeneration penalty of Su et al. (NeurIPS 2022, eq. 2): max over j of cos(h_v, h_j).

    Args:
        candidates: (batch, k, dim), hidden states of the candidate tokens, any float dtype.
        history: (batch, capacity, dim), hidden states of prompt and generated tokens, same dtype.
        history_inverse_norms: (batch, capacity) float32, 1 / norm of each, 0 for zero vectors (:func:`inverse_norms`).
        start: (batch,) first slot of each row that counts; None is 0 for all.
        length: (batch,), or one number for all rows: slots from this one on do not count, whatever they hold; None
            counts all.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.
        positions: also return the slot that each candidate is most similar to, the token that it is most like.

    Returns:
        (batch, k) float32 in [-1, 1]. A zero vector has cosine 0 with everything; a row without history has penalty 0.
        With ``positions``, also (batch, k) int64 slots, the first of equal ones; -1 for a row without history.

    Raises:
        ValueError: shapes do not fit, or the backend cannot run (``BackendError``).
    """
    check_shapes(candidates, history, history_inverse_norms)
    if choose(backend, history.device) == "triton":
        from decoding.kernels.degeneration_penalty.fused import degeneration_penalty_triton

        penalty, slots = degeneration_penalty_triton(
            candidates, history, history_inverse_norms, start, length, positions
        )
    else:
        penalty, slots = degeneration_penalty_eager(
            candidates, history, history_inverse_norms, start, length, positions
        )
    return penalty if slots is None else (penalty, slots)


def append(history: Tensor, history_inverse_norms: Tensor, hidden: Tensor, at: int, backend: str = "auto") -> None:
    """Write hidden states and their inverse norms into the history, in place.

    Args:
        history: (batch, capacity, dim), any float dtype.
        history_inverse_norms: (batch, capacity) float32.
        hidden: (batch, n, dim), hidden states of the chosen tokens, dtype of ``history``.
        at: slot of the first state; ``at`` + n is at most the capacity.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.

    Raises:
        ValueError: shapes do not fit, or the backend cannot run (``BackendError``).
    """
    check_shapes(hidden, history, history_inverse_norms, name="hidden")
    n, capacity = hidden.shape[1], history.shape[1]
    if not 0 <= at <= capacity - n:
        raise ValueError(
            f"at must be from 0 to {capacity - n} for {n} states in a history of {capacity} slots, got {at}"
        )
    if choose(backend, history.device) == "triton":
        from decoding.kernels.degeneration_penalty.fused import append_triton

        append_triton(history, history_inverse_norms, hidden, at)
    else:
        append_eager(history, history_inverse_norms, hidden, at)


def check_shapes(states: Tensor, history: Tensor, history_inverse_norms: Tensor, name: str = "candidates") -> None:
    """Raise ValueError where (batch, k, dim) states, called ``name``, the history and its norms do not fit together."""
    if states.dim() != 3 or history.dim() != 3 or states.shape[::2] != history.shape[::2]:
        raise ValueError(
            f"{name} and history must be (batch, k, dim) and (batch, capacity, dim) with the same batch and dim, got "
            f"{tuple(states.shape)} and {tuple(history.shape)}"
        )
    if history_inverse_norms.shape != history.shape[:2]:
        raise ValueError(
            f"history_inverse_norms must be (batch, capacity) = {tuple(history.shape[:2])}, got "
            f"{tuple(history_inverse_norms.shape)}"
        )
