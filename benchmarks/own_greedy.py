"""Greedy search in this library's token loop and on its in-place cache: what the strategies' own price stands on."""

from __future__ import annotations

from typing import Any

from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.readers import EXPERT, Reader

__all__ = ["OwnGreedy"]


class OwnGreedy(ContrastStrategy):
    """The model alone."""

    name = "greedy"

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The expert."""
        return [Reader(EXPERT)]

    def contrast(self, logits: Any, input_ids: Any) -> Contrast:
        """The expert's logits."""
        return Contrast(lambda alpha: logits[EXPERT].final, lambda: logits[EXPERT].final, None)
