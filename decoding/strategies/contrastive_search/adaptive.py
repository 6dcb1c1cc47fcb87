"""Adaptive contrastive search: k and α from the model's uncertainty (Garces Arias et al., EMNLP 2024 Findings)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from decoding.errors import OptionError
from decoding.generation.candidates import check_in_vocabulary
from decoding.parameters import require_count, require_number
from decoding.strategies.contrastive_search.candidate_rule import CandidateRule, Limits
from decoding.strategies.contrastive_search.strategy import HiddenStateSearch

__all__ = ["AdaptiveContrastiveSearch", "UncertaintyRule"]


@dataclass(frozen=True)
class AdaptiveContrastiveSearch(HiddenStateSearch):
    """Adaptive contrastive search: contrastive search with more candidates and a larger penalty where the model is less
    certain than it was in the text so far.

    At step t, with H_t the entropy of the next-token distribution and σ the logistic function,

        k_t = round(5 + 10·σ(q·artanh((H_t - median of H before t) / ln |V|)))
        α_t = σ(q·artanh((h_t - median of h before t) / ln k_t))

    h_t is the entropy of the k_t most probable tokens, renormalised. The token chosen is that of contrastive search
    with k_t and α_t. At the first step the medians are H_t and h_t themselves: k is 10 and α 0.5.

    Source: Garces Arias et al., "Adaptive Contrastive Search: Uncertainty-Guided Decoding for Open-Ended Text
    Generation", 2407.18698; the authors' configuration has q = 1, and their example 8. The medians are those of each
    call and row, of the tokens that it generated: the authors' code keeps them in the module, from one prompt to the
    next. Ours: the argument of artanh is kept within -1 and 1, which medians over other k may leave (there the
    code's α is no number); α is not rounded to two decimals; 5 and 15 are parameters.

    Processors act as in :class:`decoding.ContrastiveSearch`, before the entropies are taken; tokens are drawn likewise
    with ``do_sample=True``. Rows of a batch have k_t of their own: the largest is read, and drafts are read as in
    contrastive search.

    Args:
        q: above 0; how sharply k and α answer to the distance from the median.
        min_top_k: the least k, at least 1; the paper has 5.
        max_top_k: the largest k, not below ``min_top_k``; the paper has 15.
        max_history: as in :class:`decoding.ContrastiveSearch`.

    Raises:
        OptionError: a value out of range, or k beyond the model's vocabulary (when a call begins).

    Example:
        >>> decoding.generate(model, **inputs, strategy=AdaptiveContrastiveSearch(), max_new_tokens=64)
    """

    q: float = field(default=1.0, metadata={"grid": (1.0, 8.0)})
    min_top_k: int = 5
    max_top_k: int = 15
    max_history: int | None = None
    name: ClassVar[str] = "adaptive-contrastive-search"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("q", self.q, 0.0, open_=True)
        require_count("min_top_k", self.min_top_k, 1)
        require_count("max_top_k", self.max_top_k, 1, " to the size of the vocabulary")
        if self.max_top_k < self.min_top_k:
            raise OptionError(f"max_top_k={self.max_top_k}: must not be below min_top_k={self.min_top_k}")

    def check(self, model: Any) -> None:
        """Raise OptionError where the largest k is beyond the model's vocabulary."""
        check_in_vocabulary("max_top_k", self.max_top_k, model)

    def candidate_rule(self) -> UncertaintyRule:
        """The rule of one call."""
        return UncertaintyRule(self.q, self.min_top_k, self.max_top_k)


class UncertaintyRule(CandidateRule):
    """k and α of :class:`AdaptiveContrastiveSearch`, and the entropies that they depend on.

    Args:
        q: above 0.
        least: the least k.
        most: the largest.
    """

    def __init__(self, q: float, least: int, most: int) -> None:
        self.most = most
        self._q, self._least = q, least
        # Of the whole distribution and of the candidates, at places where tokens were chosen; NaN fills up rows that
        # have fewer, and is no part of a median.
        self._entropies: Tensor | None = None  # (2, batch, n) float32
        self._asked: Tensor | None = None  # (2, batch, places), not accepted yet

    def limits(self, probabilities: Tensor, best: Tensor) -> Limits:
        """Return k and α at each place, where those before it belong to the text."""
        batch, places = best.shape[:2]
        before = best.new_empty(2, batch, 0) if self._entropies is None else self._entropies
        whole = torch.special.entr(probabilities).sum(-1)  # (batch, places)
        ranks, alphas, counts = torch.arange(self.most, device=best.device), [], []
        for place in range(places):
            count = self._least + (self.most - self._least) * self._share(
                whole[:, place], before[0], math.log(probabilities.shape[-1])
            )
            count = count.round().long()
            among = torch.where(ranks < count[:, None], best[:, place], 0.0)
            entropy = torch.special.entr(among / among.sum(-1, keepdim=True)).sum(-1)
            alphas.append(self._share(entropy, before[1], count.clamp_min(2).log()))
            counts.append(count)
            before = torch.cat([before, torch.stack([whole[:, place], entropy])[..., None]], dim=-1)
        self._asked = before[..., before.shape[-1] - places :]
        return Limits(torch.stack(alphas, 1), torch.stack(counts, 1))

    def accept(self, places: Sequence[int] | None = None) -> None:
        """Remember the entropies of the places where tokens were chosen."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if places is not None:
            chosen = torch.tensor(places, device=asked.device)
            asked = asked[..., : max(places)]
            asked = asked.masked_fill(torch.arange(asked.shape[-1], device=asked.device) >= chosen[:, None], torch.nan)
        self._entropies = asked if self._entropies is None else torch.cat([self._entropies, asked], dim=-1)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        if self._entropies is not None:
            self._entropies = self._entropies[:, rows.to(self._entropies.device)]
        if self._asked is not None:
            self._asked = self._asked[:, rows.to(self._asked.device)]

    def _share(self, entropy: Tensor, before: Tensor, most: float | Tensor) -> Tensor:
        """(batch,) σ(q·artanh(distance of the entropy (batch,) from the median before it / the largest entropy)).

        It is a half where the entropy is NaN, of a row that has no token or NaN among its logits.
        """
        # A median of an even number is the mean of the two in the middle.
        median = before.nanquantile(0.5, dim=1) if before.shape[1] else entropy
        return (self._q * ((entropy - median) / most).clamp(-1.0, 1.0).atanh()).sigmoid().nan_to_num(nan=0.5)
