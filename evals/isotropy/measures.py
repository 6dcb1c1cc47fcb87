"""Measures of isotropy: pure functions of tensors, computed in float64.

Sources: Su and Collier 2023 (2210.14140), Ethayarajh 2019 (1909.00512), Rudman et al. 2022 (2108.07344) and 2023
(2305.19358), Mu and Viswanath 2018 (1702.01417), Facco et al. 2017 (TwoNN), Timkey and van Schijndel 2021 (2109.04404).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "isoscore",
    "neighbour_ratios",
    "participation_ratio",
    "partition_score",
    "penalties",
    "shrunk",
    "two_nn",
]

TRIM = 0.1  # share of the largest ratios that TwoNN does not trust: the density is not even that far out (Facco et al.)
ROWS_AT_ONCE = 2048


def participation_ratio(covariance: Tensor) -> float:
    """(Σλ)²/Σλ² of the eigenvalues of a covariance (dim, dim): how many directions share the variance, 1 to dim.

    Σλ is the trace and Σλ² the sum of the squared entries, so that no eigenvalue is computed. 0 without any variance.
    """
    covariance = covariance.double()
    squares = covariance.square().sum()
    return float(covariance.trace().square() / squares) if squares > 0 else 0.0


def isoscore(covariance: Tensor) -> float:
    """IsoScore of a covariance (dim, dim), dim >= 2: 1 where all directions vary alike, 0 where only one does.

    The published steps (scale the PCA variances to length √n, take the distance δ to (1, ..., 1) over √(2(n-√n)),
    rescale ((n - δ²(n-√n))² - n) / (n(n-1))) come to (participation ratio - 1) / (n - 1): with r = Σλ/‖λ‖ the inner
    bracket is √n·r.
    """
    return max(0.0, (participation_ratio(covariance) - 1) / (len(covariance) - 1))


def shrunk(covariance: Tensor, reference: Tensor | None, zeta: float) -> Tensor:
    """(1-ζ)C + ζC₀, the covariance (dim, dim) that IsoScore* is the IsoScore of.

    Args:
        covariance: C.
        reference: C₀, of a larger sample; None for the identity, scaled to the mean variance of C.
        zeta: 0 to 1.
    """
    if reference is None:
        reference = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        reference = reference * covariance.diagonal().mean()
    return torch.lerp(covariance, reference.to(covariance), zeta)


def partition_score(vectors: Tensor, directions: Tensor) -> float:
    """The logarithm of min Z(c) / max Z(c) over directions c and -c, Z(c) = Σ exp(c·x): 0 if isotropic, else below.

    States of length 500 have ratios that no float holds; their logarithms are fine.

    Args:
        vectors: (n, dim).
        directions: (dim, m), unit columns: the eigenvectors of Σ xxᵀ.
    """
    directions = directions.double()
    logs = torch.full((2, directions.shape[1]), -torch.inf, dtype=torch.float64, device=directions.device)
    for rows in vectors.split(ROWS_AT_ONCE):
        products = rows.to(directions) @ directions
        logs = torch.logaddexp(logs, torch.stack([products.logsumexp(0), (-products).logsumexp(0)]))
    return float(logs.min() - logs.max())


def neighbour_ratios(points: Tensor, noise: float = 0.0) -> Tensor:
    """ln(r₂/r₁) of distances to the second and first neighbour, one for each point that has two, ascending.

    Args:
        points: (n, dim).
        noise: points no further apart than this share of their length are one point: a neighbour at distance 0 does
            not show the dimension, and the first token of every text has the same state up to rounding.
    """
    points = points.double()
    points = points - points.mean(0)
    lengths = points.square().sum(1)
    squares = torch.addmm(lengths, points, points.T, alpha=-2).add_(lengths[:, None])  # of the distances
    same = (squares <= noise**2 * lengths[:, None]).triu_(1).any(0)  # as an earlier one
    squares.fill_diagonal_(torch.inf).masked_fill_(same, torch.inf)
    first, nearest = squares.min(1)
    second = squares.scatter_(1, nearest[:, None], torch.inf).amin(1)
    counted = ~same & second.isfinite()
    return (0.5 * (second[counted] / first[counted].clamp_min(torch.finfo(torch.float64).tiny)).log()).sort().values


def two_nn(ratios: Tensor) -> Tensor:
    """TwoNN intrinsic dimensions of log-ratios (..., n), ascending along the last dimension.

    The log-ratios are exponentially distributed with rate d. The largest tenth count as "at least as large as the
    largest that is kept" (the maximum likelihood for a censored sample), which trims without a bias.
    """
    n = ratios.shape[-1]
    kept = max(2, n - int(TRIM * n))
    largest = ratios[..., kept - 1]
    return (kept - 1) / (ratios[..., :kept].sum(-1) + (n - kept) * largest)


def penalties(states: Tensor) -> Tensor:
    """The maximum over j < i of cos(h_i, h_j) for each token but the first, (n - 1,) of states (n, dim).

    The degeneration penalty of contrastive search on each token of a text, as if it were a candidate.
    """
    units = torch.nn.functional.normalize(states.double(), dim=-1)
    cosines = units @ units.T
    before = torch.ones_like(cosines, dtype=torch.bool).tril(-1)
    return cosines.masked_fill(~before, -torch.inf).amax(1)[1:]
