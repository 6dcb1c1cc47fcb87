"""The model's own logits: transformers' sampling, in the token loop of the strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers import GenerationConfig

from decoding.capabilities.capabilities import open_prepared_stream
from decoding.generation.session import StreamSession
from decoding.generation.strategy import Strategy

__all__ = ["ModelLogits"]


@dataclass(frozen=True)
class ModelLogits(Strategy):
    """Sample from the model's own logits, as the call's processors and samplers leave them.

    The distribution is that of plain ``generate``. It is no strategy of the registry: ``sampling`` and its kin have the
    samplers, and this is how :func:`decoding.generate` decodes them where each row has a seed of its own.
    """

    name: ClassVar[str] = "sampling"

    def session(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        restorable: bool = False,
    ) -> ModelLogitsSession:
        """Open a session; see :meth:`Strategy.session`."""
        return ModelLogitsSession(
            open_prepared_stream(
                model, input_ids, model_kwargs, generation_config, restorable=restorable, whole_prompt=False
            )
        )


class ModelLogitsSession(StreamSession):
    """One call of sampling: a stream."""

    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """The processed logits."""
        return self.processed_logits(input_ids, logits_processor)
