"""The degeneration penalty of contrastive search: the largest cosine of each candidate with what came before."""

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
    """Degeneration penalty of Su et al. (NeurIPS 2022, eq. 2): max over j of cos(h_v, h_j).

    Args:
        candidates: (batch, k, dim), hidden states of the candidate tokens, any float dtype.
        history: (batch, capacity, dim), hidden states of prompt and generated tokens, same dtype.
        history_inverse_norms: (batch, capacity) float32, 1 / norm of each, 0 for zero vectors (:func:`inverse_norms`).
        start: (batch,) first slot of each row that counts; None is 0 for all.
        length: (batch,), or one number for all rows: slots from here on do not count, whatever they hold; None is all.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.
        positions: whether to tell as well which slot each candidate is most like, the token that it would repeat.

    Returns:
        (batch, k) float32 in [-1, 1]. A zero vector has cosine 0 with everything; a row without history has penalty 0.
        With ``positions``, also (batch, k) int64 slots, the first of equals; -1 for a row without history.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run (``BackendError``).
    """
    check_shapes(candidates, history, history_inverse_norms)
    if choose(backend, history.device) == "triton":
        from decoding.kernels.degeneration_penalty.triton import degeneration_penalty_triton

        penalty, repeated = degeneration_penalty_triton(
            candidates, history, history_inverse_norms, start, length, positions
        )
    else:
        penalty, repeated = degeneration_penalty_eager(
            candidates, history, history_inverse_norms, start, length, positions
        )
    return penalty if repeated is None else (penalty, repeated)


def append(history: Tensor, history_inverse_norms: Tensor, hidden: Tensor, at: int, backend: str = "auto") -> None:
    """Write hidden states and their inverse norms into the history, in place.

    Args:
        history: (batch, capacity, dim), any float dtype.
        history_inverse_norms: (batch, capacity) float32.
        hidden: (batch, n, dim), of the tokens chosen; dtype as ``history``.
        at: the slot of the first one; ``at`` + n is at most the capacity.
        backend: as in :func:`degeneration_penalty`.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run (``BackendError``).
    """
    check_shapes(hidden, history, history_inverse_norms)
    if not 0 <= at <= history.shape[1] - hidden.shape[1]:
        raise ValueError(
            f"at={at}: {hidden.shape[1]} states fit into a history of {history.shape[1]} slots from 0 to "
            f"{history.shape[1] - hidden.shape[1]}"
        )
    if choose(backend, history.device) == "triton":
        from decoding.kernels.degeneration_penalty.triton import append_triton

        append_triton(history, history_inverse_norms, hidden, at)
    else:
        append_eager(history, history_inverse_norms, hidden, at)


def check_shapes(states: Tensor, history: Tensor, history_inverse_norms: Tensor) -> None:
    """Raise ValueError where (batch, k, dim) states, history and norms do not fit together."""
    if states.dim() != 3 or history.dim() != 3 or states.shape[::2] != history.shape[::2]:
        raise ValueError(
            f"candidates {tuple(states.shape)} and history {tuple(history.shape)}: accepted are (batch, k, dim) "
            "and (batch, capacity, dim) with the same batch and dim"
        )
    if history_inverse_norms.shape != history.shape[:2]:
        raise ValueError(
            f"history_inverse_norms {tuple(history_inverse_norms.shape)}: accepted is (batch, capacity) = "
            f"{tuple(history.shape[:2])}"
        )
