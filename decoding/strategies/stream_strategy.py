"""Strategies that need one stream of the model."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from decoding.capabilities.capabilities import open_prepared_stream
from decoding.generation.session import StreamSession
from decoding.generation.strategy import Strategy
from decoding.stream.stream import Stream

__all__ = ["StreamStrategy"]


class StreamStrategy(Strategy):
    """Base of the strategies whose session is one stream of the model, which has read the prompt."""

    @abstractmethod
    def session_on(self, stream: Stream) -> StreamSession:
        """The session of one call."""

    def session(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        restorable: bool = False,
    ) -> StreamSession:
        """Open a session; see :meth:`Strategy.session`."""
        stream = open_prepared_stream(
            model, input_ids, model_kwargs, generation_config, restorable=restorable, whole_prompt=False
        )
        return self.session_on(stream)
