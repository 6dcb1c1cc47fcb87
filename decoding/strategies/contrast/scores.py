"""The scores of a contrast, and which tokens they may choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from decoding.kernels.candidates import within
from decoding.kernels.contrast import masked, plausible

__all__ = ["Contrast", "are_few", "candidates"]

# Share of the vocabulary up to which heads are applied for some tokens alone. Their rows are copied: those of an eighth
# of 49,152 tokens took half as long as the whole head.
MOST_TOKENS = 1 / 8
# Of the logits' distance to the limit of plausibility, which the kernels compute in another way: a token closer to it
# counts as plausible here.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Contrast:
    """The scores that a strategy computes from its readers' logits, each part computed when it is asked for.

    Attributes:
        score_fn: from plausibility's α to (..., vocab) scores, -inf where a token is not plausible; None lets every
            token pass. Where there is a mask it is given None alone.
        plausibility_logits: returns the (..., vocab) logits that plausibility is taken from.
        alpha: plausible is p >= alpha·max p; None lets every token pass, but for a mask.
        mask: returns (..., vocab) bool, True for the tokens that are plausible, in place of α; None for α. Where
            processors have excluded all of these in a row, every token that they left is plausible.
    """

    score_fn: Callable[[float | None], Tensor]
    plausibility_logits: Callable[[], Tensor]
    alpha: float | None
    mask: Callable[[], Tensor] | None = None

    @property
    def scores(self) -> Tensor:
        """(..., vocab) float32, the scores of all tokens, plausible or not."""
        return self.score_fn(None).float()

    @property
    def masked(self) -> Tensor:
        """(..., vocab) float32, the scores, -inf where a token is not plausible."""
        return self.score_fn(self.alpha).float() if self.mask is None else self.apply_plausibility(self.scores)

    def apply_plausibility(self, scores: Tensor) -> Tensor:
        """Scores (..., vocab) that processors have changed, -inf where a token is not plausible."""
        if self.mask is None:
            logits = None if self.alpha is None else self.plausibility_logits().to(scores.device)
            return scores if logits is None else masked(scores, logits, self.alpha)
        return within(scores, self.mask().to(scores.device))

    def plausible(self, rounding: float = 0.0) -> Tensor | None:
        """(..., vocab) True for the tokens that are plausible; None where every token passes.

        Args:
            rounding: how much farther below the limit of α a logit may be.
        """
        if self.mask is not None:
            return self.mask()
        if self.alpha is None:
            return None
        return plausible(self.plausibility_logits(), self.alpha * math.exp(-rounding))

    @property
    def by_alpha(self) -> bool:
        """True where α alone says what is plausible, which can then be told from the likeliest tokens' logits."""
        return self.mask is None and bool(self.alpha)


def candidates(contrast: Contrast) -> Tensor | None:
    """(batch, vocab) True for the tokens that are plausible, or would be after another rounding; None where every token
    passes, or a row has none.
    """
    passing = contrast.plausible(ROUNDING)
    if passing is None:
        return None
    best = contrast.plausibility_logits().amax(-1)  # NaN where one of them is
    told = bool(best.isfinite().all()) and bool(passing.any(-1).all())
    return passing if told and (contrast.by_alpha or not bool(passing.all())) else None


def are_few(tokens: Tensor) -> bool:
    """True where heads of the tokens (batch, vocab) that are marked in some row cost less than heads of all tokens."""
    return int(tokens.any(0).sum()) <= MOST_TOKENS * tokens.shape[-1]
