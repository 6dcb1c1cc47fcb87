"""Statistics of evaluations: bootstrap intervals, paired differences, and McNemar's exact test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "Difference",
    "Interval",
    "bootstrap_figure",
    "bootstrap_means",
    "mcnemar",
    "paired_differences",
]

CONFIDENCE = 0.95
RESAMPLES = 10_000  # the ends of a 95% interval then move by about 1% of its width from seed to seed
NUMBERS_AT_ONCE = 2**22  # of resampling counts, 32 MB


@dataclass(frozen=True)
class Interval:
    """A figure and its 95% interval: percentiles of a bootstrap, where nothing else is said.

    Attributes:
        value: the figure on the documents as they are.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A mean of one method minus that of another on the same documents.

    Attributes:
        value: the difference.
        low: lower end of its bootstrap interval.
        high: upper end.
        p: two-sided, of the bootstrap: twice the smaller share of resampled differences on either side of 0.
        mcnemar_p: of McNemar's exact test where every value is 0 or 1; None elsewhere.
        better: documents on which the first method has the higher value.
        worse: documents on which it has the lower one.
    """

    value: float
    low: float
    high: float
    p: float
    mcnemar_p: float | None
    better: int
    worse: int


def bootstrap_means(
    values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> list[Interval]:
    """Percentile bootstrap intervals of the means of columns.

    Args:
        values: (documents, metrics), at least one document. Documents are resampled whole.
        seed: of the draws; the same seed and number of documents resample the same documents.
        resamples: how many times.
        confidence: in (0, 1).

    Returns:
        One interval a column.
    """
    columns = _columns(values)
    means = _resampled_means(columns, seed, resamples)
    return [
        Interval(float(value), *_ends(resampled, confidence))
        for value, resampled in zip(columns.mean(0), means.T, strict=True)
    ]


def paired_differences(
    values: ArrayLike,
    baseline: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Difference]:
    """What one method gains over another, document by document.

    Args:
        values: (documents, metrics) of the one.
        baseline: (documents, metrics) of the other, on the same documents in the same order.
        seed: of the draws.
        resamples: how many times.
        confidence: in (0, 1).

    Returns:
        One difference a column.

    Raises:
        ValueError: the shapes differ.
    """
    first, second = _columns(values), _columns(baseline)
    if first.shape != second.shape:
        raise ValueError(f"values {first.shape} and baseline {second.shape} are not of the same documents and metrics")
    gains = first - second
    means = _resampled_means(gains, seed, resamples)
    differences = []
    for column, resampled in enumerate(means.T):
        below, above = float((resampled <= 0).mean()), float((resampled >= 0).mean())
        better, worse = int((gains[:, column] > 0).sum()), int((gains[:, column] < 0).sum())
        binary = bool(np.isin(first[:, column], (0, 1)).all() and np.isin(second[:, column], (0, 1)).all())
        differences.append(
            Difference(
                float(gains[:, column].mean()),
                *_ends(resampled, confidence),
                # Of so many resamples no smaller share than one can be told from none.
                min(1.0, 2 * max(min(below, above), 1 / resamples)),
                mcnemar(better, worse) if binary else None,
                better,
                worse,
            )
        )
    return differences


def bootstrap_figure(
    figure: Callable[[Sequence[int]], float],
    documents: int,
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile bootstrap interval of a figure that is no mean over documents.

    Args:
        figure: from the indices of documents, some of them several times, to the figure.
        documents: how many there are.
        seed: of the draws.
        resamples: how many times ``figure`` is worked out.
        confidence: in (0, 1).
    """
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, documents, documents) for _ in range(resamples))
    resampled = np.array([figure(indices.tolist()) for indices in drawn])
    return Interval(float(figure(range(documents))), *_ends(resampled, confidence))


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p of McNemar's exact test on documents on which exactly one of two methods is right.

    Under the null hypothesis either is as often the right one: a binomial with probability ½.

    Args:
        better: on how many the first method alone is right.
        worse: on how many the second alone.
    """
    tail = sum(math.comb(better + worse, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2 ** (better + worse))


def _columns(values: ArrayLike) -> NDArray[np.float64]:
    columns = np.asarray(values, dtype=np.float64)
    if columns.ndim != 2 or len(columns) == 0:
        raise ValueError(
            f"values of shape {columns.shape}: accepted is (documents, metrics) with at least one document"
        )
    return columns


def _resampled_means(columns: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """(resamples, metrics). How often each document is drawn is all that a mean needs: one matrix product."""
    generator, documents = np.random.default_rng(seed), len(columns)
    at_once = max(1, NUMBERS_AT_ONCE // documents)
    means = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(0, documents, (rows, documents)) + documents * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * documents).reshape(rows, documents)
        means.append(counts @ columns / documents)
    return np.concatenate(means)


def _ends(resampled: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
