"""Discrimination: how well a score tells two kinds of documents apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["auroc"]


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
