"""The choice of contrastive search in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.kernels.degeneration_penalty import degeneration_penalty

__all__ = ["contrastive_scores", "select_eager"]


def select_eager(
    logits: Tensor,
    probabilities: Tensor,
    candidates: Tensor,
    penalty_alpha: float | Tensor,
    hidden: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    backend: str = "torch",
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose token, branch and score, (batch,) each: :func:`decoding.kernels.selection.select`.

    ``backend`` is that of the degeneration penalty.
    """
    penalty = degeneration_penalty(hidden, history, history_inverse_norms, start, length, backend)
    scores = contrastive_scores(logits, probabilities, candidates, penalty, penalty_alpha, counts)
    best = scores.amax(1, keepdim=True)
    token = torch.where(scores == best, candidates, logits.shape[1]).amin(1, keepdim=True)  # lowest id of equal scores
    branch = (candidates == token).to(torch.uint8).argmax(1)
    return candidates.gather(1, branch[:, None])[:, 0], branch, best[:, 0]


def contrastive_scores(
    logits: Tensor,
    probabilities: Tensor,
    candidates: Tensor,
    penalty: Tensor,
    penalty_alpha: float | Tensor,
    counts: Tensor | None = None,
) -> Tensor:
    """Compute scores (1 - α)·p - α·penalty (Su et al., eq. 2), -inf where the candidate's logit is -inf.

    Args:
        logits: (batch, vocab), any float dtype.
        probabilities: (batch, k) float32, of the candidates.
        candidates: (batch, k) int64 token ids.
        penalty: (batch, k) float32 degeneration penalty.
        penalty_alpha: α in [0, 1]; one number, or (batch,) float32.
        counts: (batch,) int64, how many of each row's candidates may be chosen: the others score -inf; None is all.

    Returns:
        (batch, k) float32.
    """
    alpha = penalty_alpha[:, None] if isinstance(penalty_alpha, Tensor) else penalty_alpha
    scores = (1 - alpha) * probabilities - alpha * penalty
    excluded = logits.gather(1, candidates) == -torch.inf
    if counts is not None:
        excluded |= torch.arange(candidates.shape[1], device=counts.device) >= counts[:, None]
    return scores.masked_fill_(excluded, -torch.inf)
