"""Statistics of evaluations: bootstrap intervals, paired tests, and Holm's correction of many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "Difference",
    "Interval",
    "bootstrap_figure",
    "bootstrap_means",
    "holm",
    "mcnemar",
    "paired_differences",
    "sign_flip",
]

CONFIDENCE = 0.95
RESAMPLES = 10_000  # the ends of a 95% interval then move by about 1% of its width from seed to seed
NUMBERS_AT_ONCE = 2**22  # of resampling counts, 32 MB
EXACT = 17  # documents that differ, up to which all signs are tried: 2^16 sums, as the other half mirrors them


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
    """The mean of one method minus that of another on the same documents.

    Attributes:
        value: the difference.
        low: lower end of its bootstrap interval.
        high: upper end.
        p: two-sided, of :func:`sign_flip`.
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
    """Intervals of the means of columns, by the percentile bootstrap.

    Args:
        values: (documents, metrics), at least one document. Documents are resampled whole.
        seed: of the draws; the same seed and number of documents resample the same documents.
        resamples: number of resamples.
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
    """The differences between two methods, document by document.

    Args:
        values: (documents, metrics) of one method.
        baseline: (documents, metrics) of the other, on the same documents in the same order.
        seed: of the draws.
        resamples: number of resamples, and of random signs.
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
    p_values = sign_flip(gains, seed=seed, resamples=resamples)
    differences = []
    for column, (resampled, p) in enumerate(zip(means.T, p_values, strict=True)):
        better, worse = int((gains[:, column] > 0).sum()), int((gains[:, column] < 0).sum())
        binary = bool(np.isin(first[:, column], (0, 1)).all() and np.isin(second[:, column], (0, 1)).all())
        differences.append(
            Difference(
                float(gains[:, column].mean()),
                *_ends(resampled, confidence),
                p,
                mcnemar(better, worse) if binary else None,
                better,
                worse,
            )
        )
    return differences


def sign_flip(gains: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> list[float]:
    """Two-sided p-values of the paired permutation test (Fisher's randomization test).

    If two methods are alike, their values on a document can be exchanged, which changes the sign of the difference. p
    is the share of all combinations of signs under which the sum of the differences is at least as far from 0. With n
    documents that differ p is at least 2^(1-n): five documents cannot reach 0.05.

    Args:
        gains: (documents, metrics), the values of one method minus those of the other.
        seed: of the draws.
        resamples: number of random combinations of signs, where more documents than ``EXACT`` differ; the observed
            signs are counted too, so that p is at least 1 / (resamples + 1).

    Returns:
        One p a column: 1 where no document differs.
    """
    columns = _columns(gains)
    differing = (columns != 0).sum(0)
    p_values = [
        _exact_sign_flip(column[column != 0]) if count <= EXACT else 0.0
        for column, count in zip(columns.T, differing, strict=True)
    ]
    many = np.flatnonzero(differing > EXACT)
    if len(many):
        drawn = _drawn_sign_flip(columns[:, many], seed, resamples)
        for column, p in zip(many.tolist(), drawn, strict=True):
            p_values[column] = p
    return p_values


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): without a difference any of them is below 0.05 in 5% of tables.

    Args:
        p_values: of one table.

    Returns:
        The corrected ones in the same order, none smaller than before.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def bootstrap_figure(
    figure: Callable[[Sequence[int]], float],
    documents: int,
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of a figure that is no mean over documents, by the percentile bootstrap.

    Args:
        figure: a function from indices of documents, some of them repeated, to the figure.
        documents: their number.
        seed: of the draws.
        resamples: number of resamples.
        confidence: in (0, 1).
    """
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, documents, documents) for _ in range(resamples))
    resampled = np.array([figure(indices.tolist()) for indices in drawn])
    return Interval(float(figure(range(documents))), *_ends(resampled, confidence))


def mcnemar(better: int, worse: int) -> float:
    """The two-sided p of McNemar's exact test on documents on which exactly one of two methods is right.

    Under the null hypothesis each is right equally often: a binomial with probability ½.

    Args:
        better: number of documents on which only the first method is right.
        worse: number on which only the second is.
    """
    tail = sum(math.comb(better + worse, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2 ** (better + worse))


def _columns(values: ArrayLike) -> NDArray[np.float64]:
    columns = np.asarray(values, dtype=np.float64)
    if columns.ndim != 2 or len(columns) == 0:
        raise ValueError(f"values of shape {columns.shape}: expected (documents, metrics) with at least one document")
    return columns


def _exact_sign_flip(gains: NDArray[np.float64]) -> float:
    """The p-value of all combinations of signs, from (documents,) differences that are not 0."""
    sums = np.zeros(1)
    for index, gain in enumerate(gains):
        # The first sign stays: the other half of the sums are these with opposite signs.
        sums = np.concatenate([sums + gain, sums - gain]) if index else sums + gain
    return float((np.abs(sums) >= _as_far(gains)).mean())


def _drawn_sign_flip(gains: NDArray[np.float64], seed: int, resamples: int) -> list[float]:
    """The p-values of random combinations of signs, from (documents, metrics) differences."""
    generator, (documents, metrics) = np.random.default_rng(seed), gains.shape
    at_once = max(1, NUMBERS_AT_ONCE // max(documents, metrics))
    far = _as_far(gains)
    count = np.ones(metrics)  # the observed signs
    for start in range(0, resamples, at_once):
        signs = 2.0 * generator.integers(0, 2, (min(at_once, resamples - start), documents)) - 1
        count += (np.abs(signs @ gains) >= far).sum(0)
    return (count / (resamples + 1)).tolist()


def _as_far(gains: NDArray[np.float64]) -> Any:
    """The distance of the sum over documents from 0, less a margin for rounding: equal sums count."""
    return np.abs(gains.sum(0)) - 1e-9 * np.abs(gains).sum(0)


def _resampled_means(columns: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """(resamples, metrics). A mean needs only how often each document is drawn: one matrix product."""
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
