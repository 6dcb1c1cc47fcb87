"""Sums that one streaming pass keeps of a layer; their size does not depend on the number of texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.evals.isotropy.results import Interval

__all__ = ["CosineSums", "MomentSums", "Moments", "pooled"]

BLOCKS = 4  # of the second moments' rows, of which each is computed from its diagonal on: 5/8 of the whole matrix


class CosineSums:
    """Mean cosines over all pairs of tokens, within texts and across them, exact without visiting pairs.

    Σ over i ≠ j of cos(h_i, h_j) is ‖Σu‖² less the number of vectors, u = h/‖h‖. With Σu known for each text, the pairs
    within texts are the sum over texts, and the pairs across texts are the rest. Zero vectors have cosine 0.

    Args:
        dim: width of the states.
        device: where the sums are kept, in float64.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.units = torch.zeros(dim, dtype=torch.float64, device=device)  # Σ over all tokens of u
        self.squares = torch.zeros(dim, dtype=torch.float64, device=device)  # Σ over texts of (Σ u)², a dimension each
        # Over texts t with S the sum of the cosines of its P = L(L-1) ordered pairs: ΣS, ΣP, ΣSS, ΣSP, ΣPP, ΣL, ΣLL, Σ1
        self.scalars = torch.zeros(8, dtype=torch.float64, device=device)

    def add(self, hidden: Tensor, kept: Tensor) -> None:
        """Add texts.

        Args:
            hidden: (batch, n, dim), float32 or float64.
            kept: (batch, n), True where a token counts.
        """
        norms = torch.linalg.vector_norm(hidden, dim=-1)
        weights = torch.where(kept & (norms > 0), 1 / norms, 0)
        sums = torch.bmm(weights[:, None], hidden)[:, 0].to(self.units)  # (batch, dim)
        squares = sums.square()
        nonzero, length = (weights > 0).sum(1).to(self.units), kept.sum(1).to(self.units)
        cosines, pairs = squares.sum(1) - nonzero, length * (length - 1)
        self.units += sums.sum(0)
        self.squares += squares.sum(0)
        products = (cosines, pairs, cosines**2, cosines * pairs, pairs**2, length, length**2, (length > 0).to(length))
        self.scalars += torch.stack([product.sum() for product in products])

    def within(self) -> Interval | None:
        """The mean over all pairs within a text, with its 95% interval over texts; None where there is no pair.

        The interval is that of a ratio of two sums over texts, linearised: texts are what is drawn at random, and the
        tokens of one are not independent.
        """
        cosines, pairs, cosines_2, product, pairs_2, _, _, texts = self.scalars.tolist()
        if pairs == 0:
            return None
        mean = cosines / pairs
        if texts < 2:
            return Interval(mean, -1.0, 1.0)
        residuals = max(0.0, cosines_2 - 2 * mean * product + mean**2 * pairs_2)
        half = 1.96 * math.sqrt(texts / (texts - 1) * residuals) / pairs
        return Interval(mean, max(-1.0, mean - half), min(1.0, mean + half))

    def across(self) -> float | None:
        """The mean over all pairs from different texts; None where there is one text."""
        shares = self.shares()
        return None if shares is None else float(shares.sum())

    def shares(self) -> Tensor | None:
        """The contribution of each dimension to :meth:`across`, (dim,) (Timkey and van Schijndel)."""
        length, length_2 = self.scalars[5:7].tolist()
        if length**2 == length_2:
            return None
        return (self.units.square() - self.squares) / (length**2 - length_2)


@dataclass(frozen=True)
class Moments:
    """Count, mean (dim,) and covariance (dim, dim), divided by the count, of a layer's states; float64."""

    count: int
    mean: Tensor
    covariance: Tensor

    def to(self, **kwargs: Any) -> Moments:
        """The same with tensors elsewhere."""
        return Moments(self.count, self.mean.to(**kwargs), self.covariance.to(**kwargs))


class MomentSums:
    """First and second moments of a layer's states.

    The products are float32 matrix products, about 5% of what the layer itself costs, added up in float64. States are
    shifted by the mean of the first batch, so that subtracting the mean's square loses no digits.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.count = 0
        self.shift: Tensor | None = None  # (dim,)
        self.first = torch.zeros(dim, dtype=torch.float64, device=device)
        self.second = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, states: Tensor) -> None:
        """Add states (n, dim), float32 or float64."""
        if not len(states):
            return
        if self.shift is None:
            self.shift = states.mean(0)
        states = states - self.shift
        self.count += len(states)
        self.first += states.sum(0).to(self.first)
        for rows in self._blocks():
            self.second[rows, rows.start :] += (states[:, rows].T @ states[:, rows.start :]).to(self.second)

    def moments(self) -> Moments:
        """The moments of all states added, at least one. Computed in place: nothing can be added afterwards."""
        assert self.shift is not None
        for rows in self._blocks():
            self.second[rows.stop :, rows] = self.second[rows, rows.stop :].T
        mean = self.first.div_(self.count)
        covariance = self.second.div_(self.count).addr_(mean, mean, alpha=-1)
        return Moments(self.count, mean + self.shift.to(mean), covariance)

    def _blocks(self) -> list[slice]:
        size = -(-len(self.first) // BLOCKS)
        return [slice(start, start + size) for start in range(0, len(self.first), size)]


def pooled(parts: list[Moments]) -> Moments:
    """The moments of several samples taken together."""
    count = sum(part.count for part in parts)
    mean = torch.stack([part.mean * (part.count / count) for part in parts]).sum(0)
    covariance = torch.zeros_like(parts[0].covariance)
    for part in parts:
        covariance += part.count / count * (part.covariance + torch.outer(part.mean - mean, part.mean - mean))
    return Moments(count, mean, covariance)
