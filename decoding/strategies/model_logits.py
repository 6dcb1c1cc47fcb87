"""The model's own logits: transformers' sampling, in the token loop of the strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from decoding.generation.score_parts import ScoreParts, model_parts
from decoding.generation.session import StreamSession
from decoding.strategies.stream_strategy import StreamStrategy
from decoding.stream.stream import Stream

__all__ = ["ModelLogits"]


@dataclass(frozen=True)
class ModelLogits(StreamStrategy):
    """Sample from the model's own logits, as the call's processors and samplers leave them.

    The distribution is that of plain ``generate``. It is no strategy of the registry: ``sampling`` and its kin have the
    samplers, and this is how :func:`decoding.generate` decodes them where each row has a seed of its own.
    """

    name: ClassVar[str] = "sampling"

    def session_on(self, stream: Stream) -> ModelLogitsSession:
        """The session of one call."""
        return ModelLogitsSession(stream)


class ModelLogitsSession(StreamSession):
    """One call of sampling: a stream."""

    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """The processed logits."""
        return self.processed_logits(input_ids, logits_processor)

    def score_parts(self, input_ids: Tensor, logits_processor: Any) -> ScoreParts:
        """The model's log-probabilities, and what the processors change."""
        return model_parts(self.logits, self.scores(input_ids, logits_processor))
