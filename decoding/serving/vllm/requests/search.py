"""The request for contrastive search."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from decoding.errors import OptionError
from decoding.parameters import require_count, require_range
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.base import Request

__all__ = ["ContrastiveSearchRequest"]


@dataclass(frozen=True)
class ContrastiveSearchRequest(Request):
    """Contrastive search; see :class:`decoding.ContrastiveSearch`. The whole text counts as history."""

    penalty_alpha: float = 0.6
    top_k: int = 4
    name: ClassVar[str] = "contrastive-search"

    def __post_init__(self) -> None:
        require_range("penalty_alpha", self.penalty_alpha, 0.0, 1.0)
        require_count("top_k", self.top_k, 1, " to the size of the vocabulary")

    @property
    def kind(self) -> Hashable:
        """All searches are alike."""
        return type(self)

    def followers(self, engine: EngineReaders) -> int:
        """One for each candidate."""
        return self.top_k

    def on(self, engine: EngineReaders) -> Request:
        """The request.

        Raises:
            OptionError: the engine reads fewer candidates.
        """
        if self.top_k > engine.candidates:
            reads = f"at most {engine.candidates} candidates" if engine.candidates else "no candidates"
            raise OptionError(
                f"{self.name}: top_k={self.top_k}: this engine reads {reads} of a request; start it with "
                f'"candidates": {self.top_k}'
            )
        return self
