"""The strategies that score, and what a score may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from decoding.errors import OptionError
from decoding.parameters import LARGEST, plain_number, require_range
from decoding.strategies.baselines import Greedy
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.strategies.given import given_strategy
from decoding.strategies.registry import scorable_strategies

__all__ = ["checked_floor", "is_plain", "scoring_strategy"]


class _Plain(ContrastStrategy):
    """The model's own probabilities, as a contrast of one reader."""

    name = "greedy"

    def readers(self, model: Any, rows: int) -> list[Reader]:
        return [Reader(EXPERT)]

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        final = logits[EXPERT].final
        return Contrast(lambda alpha: final, lambda: final, None)


def is_plain(strategy: ContrastStrategy) -> bool:
    """True of the model's own probabilities, whose scores are normalised."""
    return isinstance(strategy, _Plain)


def checked_floor(floor: Any) -> float:
    """Python's number of a floor.

    Raises:
        OptionError: it is none.
    """
    floor = plain_number(floor)
    if not isinstance(floor, float) or floor != -float("inf"):
        require_range("floor", floor, -LARGEST, LARGEST)
    return cast(float, floor)


def scoring_strategy(strategy: Any, tokenizer: Any, text_alone: bool = True) -> ContrastStrategy:
    """The strategy that scores.

    Args:
        strategy: in any form.
        tokenizer: for strategies that have texts.
        text_alone: whether prompts are text alone, under which a contrast of images or sound cannot score.

    Raises:
        OptionError: it cannot.
    """
    if strategy is None:
        return _Plain()
    spec = given_strategy(strategy)
    if isinstance(spec.strategy, Greedy):
        return _Plain()
    is_contrast = isinstance(spec.strategy, ContrastStrategy)
    if is_contrast and (spec.strategy.scorable or not text_alone):
        return cast(ContrastStrategy, spec.strategy.with_tokenizer(tokenizer))
    if is_contrast:
        raise OptionError(
            f"strategy={spec.name}: gives no score to a given token after text alone: give decoding.score what the "
            "processor returns for the prompt, or decoding.score_batch several prompts"
        )
    raise OptionError(
        f"strategy={spec.name}: gives no score to a given token; must be {', '.join(scorable_strategies())}, or None "
        "for the model's own log-probabilities"
    )
