"""Candidates: the most probable tokens of a step, among which some strategies choose by scores of their own."""

from __future__ import annotations

from typing import Any

from transformers import LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper

from decoding.errors import OptionError, shown
from decoding.generation.strategy import Strategy
from decoding.models.text_config import vocab_size
from decoding.parameters import require_count, require_range

__all__ = ["CandidateStrategy", "TopKStrategy", "check_in_vocabulary"]


class CandidateStrategy(Strategy):
    """Base of the strategies that choose among the most probable tokens by p less a penalty."""

    def split_temperature(self, logits_processor: LogitsProcessorList) -> tuple[LogitsProcessorList, float]:
        """The processors but for temperature, and the temperature: it belongs to the draw among the candidates, not to
        their probabilities.
        """
        temperature = 1.0
        kept = LogitsProcessorList()
        for processor in logits_processor:
            if isinstance(processor, TemperatureLogitsWarper):
                temperature *= processor.temperature
            else:
                kept.append(processor)
        return kept, temperature


class TopKStrategy(CandidateStrategy):
    """Base of those that choose among the ``top_k`` most probable tokens, with a penalty weighed by ``penalty_alpha``.
    Both are fields of the subclass, with defaults of its own.
    """

    penalty_alpha: float
    top_k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("penalty_alpha", self.penalty_alpha, 0.0, 1.0)
        require_count("top_k", self.top_k, 1, " to the size of the vocabulary")

    def check(self, model: Any) -> None:
        """Raise OptionError where k is beyond the model's vocabulary."""
        check_in_vocabulary("top_k", self.top_k, model)


def check_in_vocabulary(name: str, number: int, model: Any) -> None:
    """Raise OptionError where a parameter, a number of candidates, is beyond the model's vocabulary."""
    vocab = vocab_size(model)
    if number > vocab:
        raise OptionError(f"{name}={shown(number)}: must be 1 to {vocab}, the size of the model's vocabulary")
