"""Samplers that transformers lacks, as strategies: top-nσ and p-less."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from transformers import LogitsProcessor

from decoding.generation.score_parts import ScoreParts, model_parts
from decoding.generation.session import StreamSession
from decoding.generation.warpers import PLessLogitsWarper, TopNSigmaLogitsWarper
from decoding.parameters import require_number
from decoding.strategies.stream_strategy import StreamStrategy
from decoding.stream.stream import Stream

__all__ = ["PLess", "TopNSigma", "TruncationSampler"]


class TruncationSampler(StreamStrategy):
    """Base of the samplers that keep some tokens and draw among them; subclasses have :meth:`warper`.

    The score of a token is its logit, after the processors of the call, over the temperature; -inf where it is not
    kept. As with every strategy, ``decoding.generate`` draws with ``do_sample=True`` (and transformers' own samplers
    act before: ``top_k`` is 50 unless the call says otherwise). Commands and evaluations draw, with no other sampler.
    """

    temperature: float
    is_stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("temperature", self.temperature, 0.0, open_=True)

    @abstractmethod
    def warper(self) -> LogitsProcessor:
        """Return the logits processor that excludes the tokens that are not kept."""

    def session_on(self, stream: Stream) -> TruncationSession:
        """The session of one call."""
        return TruncationSession(self, stream)


class TruncationSession(StreamSession):
    """One call of a sampler: a stream."""

    def __init__(self, strategy: TruncationSampler, stream: Stream) -> None:
        super().__init__(stream)
        self.temperature = strategy.temperature
        self.warper = strategy.warper()

    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """The logits that are kept, over the temperature; -inf elsewhere."""
        logits = self.processed_logits(input_ids, logits_processor)
        return self.warper(input_ids, logits / self.temperature)

    def score_parts(self, input_ids: Tensor, logits_processor: Any) -> ScoreParts:
        """The model's log-probabilities over the temperature, and what the processors change."""
        return model_parts(self.logits, self.scores(input_ids, logits_processor), self.temperature)


@dataclass(frozen=True)
class TopNSigma(TruncationSampler):
    """Sampling from the tokens with l >= max l - n·σ, σ the standard deviation of all finite logits (top-nσ).

    Source: Tang et al., "Top-nσ: Not All Logits Are You Need", 2411.07641. That a token at -inf, which a processor has
    excluded, takes no part in σ is ours, and so is the division by the number of logits. As a logits processor beside
    another strategy: :class:`decoding.TopNSigmaLogitsWarper`.

    Args:
        n: >= 0; the paper uses 1; 0 is greedy search.
        temperature: above 0; the tokens that are kept do not depend on it.

    Raises:
        OptionError: a value out of range.

    Example:
        >>> decoding.generate(model, **inputs, strategy=TopNSigma(), do_sample=True, top_k=0, max_new_tokens=64)
    """

    n: float = field(default=1.0, metadata={"grid": (0.5, 1.0)})
    temperature: float = 1.0
    name: ClassVar[str] = "top-n-sigma"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("n", self.n, 0.0)

    def warper(self) -> LogitsProcessor:
        """Return the logits processor that excludes the tokens that are not kept."""
        return TopNSigmaLogitsWarper(self.n)


@dataclass(frozen=True)
class PLess(TruncationSampler):
    """Sampling from the tokens with p >= Σ p², the probability that two draws are the same token (p-less).

    p is after the temperature. Source: Tan et al., "p-less Sampling: A Robust Hyperparameter-Free Approach for LLM
    Decoding", 2509.23234. As a logits processor beside another strategy: :class:`decoding.PLessLogitsWarper`.

    Args:
        temperature: above 0.

    Raises:
        OptionError: a value out of range.

    Example:
        >>> decoding.generate(model, **inputs, strategy=PLess(), do_sample=True, top_k=0, max_new_tokens=64)
    """

    temperature: float = 1.0
    name: ClassVar[str] = "p-less"

    def warper(self) -> LogitsProcessor:
        """Return the logits processor that excludes the tokens that are not kept."""
        return PLessLogitsWarper()
