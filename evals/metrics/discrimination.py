"""Discrimination: how well a score tells two kinds of documents apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["auroc", "best_threshold"]


def auroc(high: ArrayLike, low: ArrayLike) -> float:
    """The area under the ROC curve: how often one of the first kind scores above one of the second; a tie counts half.

    Args:
        high: (n,) scores of the kind that should score high.
        low: (m,) scores of the other.

    Returns:
        0 to 1; 0.5 where the score does not tell them apart, and where one kind is missing.
    """
    first, second = np.asarray(high, dtype=float), np.asarray(low, dtype=float)
    if not len(first) or not len(second):
        return 0.5
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, side="left")
    not_above = np.searchsorted(ordered, first, side="right")
    return float((below + not_above).sum() / (2 * len(first) * len(second)))


def best_threshold(high: ArrayLike, low: ArrayLike) -> float:
    """The threshold above which scores are taken for the first kind with the fewest errors.

    Args:
        high: (n,) scores of the kind that should score above it.
        low: (m,) scores of the other; at least one score in all.

    Returns:
        A number in the middle between two neighbouring scores, or 1 beyond the outermost; of equally good ones the
        middle one. So it moves with the scores where a number is added to all of them.
    """
    first, second = np.sort(np.asarray(high, dtype=float)), np.sort(np.asarray(low, dtype=float))
    scores = np.unique(np.concatenate([first, second]))
    between = np.concatenate([[scores[0] - 1], (scores[1:] + scores[:-1]) / 2, [scores[-1] + 1]])
    errors = (
        np.searchsorted(first, between, side="right") + len(second) - np.searchsorted(second, between, side="right")
    )
    best = between[errors == errors.min()]
    return float(best[len(best) // 2])
