"""Results of a search for retrieval heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from decoding.evals.heads.settings import Settings
from decoding.strategies.contrast.heads_text import best_heads, heads_as_text, heads_from_text

__all__ = ["RETRIEVAL", "Control", "RetrievalHeads"]

RETRIEVAL = 0.1  # the score from which on Wu et al. call a head a retrieval head


@dataclass(frozen=True)
class Control:
    """How much is copied without some heads, in contexts that no score comes of.

    Attributes:
        copied: share of the answers' tokens that the whole model copies.
        without_best: the same without the heads that were found.
        without_drawn: the same without as many other heads, which are drawn.
        drawn: these, as text.
        tokens: number of tokens of the answers.
    """

    copied: float
    without_best: float
    without_drawn: float
    drawn: str
    tokens: int


@dataclass(frozen=True)
class RetrievalHeads:
    """The retrieval score of every attention head of a model.

    Attributes:
        model: its name.
        scores: by layer, of each head, 0 to 1; empty for a layer without attention.
        copied: share of the answers' tokens that the model copies; the largest score that a head could have.
        contexts: number of contexts.
        tokens: number of tokens of their answers.
        lengths: of the contexts, in tokens.
        settings: of the search.
        control: None where it was left out, or no head has a score.
    """

    model: str
    scores: tuple[tuple[float, ...], ...]
    copied: float
    contexts: int
    tokens: int
    lengths: tuple[int, ...]
    settings: Settings
    control: Control | None = None

    @property
    def best(self) -> list[tuple[int, int]]:
        """Layers and heads with a score above 0, the highest first, at most ``settings.top``."""
        return best_heads(self.scores)[: self.settings.top]

    @property
    def text(self) -> str:
        """The best heads as ``masked-heads`` has them in a text, ``5.0+5.3`` (layer.head); "" for none."""
        return heads_as_text(self.best)

    @property
    def heads(self) -> Mapping[int, list[int]]:
        """The best heads by layer, as :class:`decoding.MaskedHeads` takes them."""
        return heads_from_text(self.text) if self.text else {}

    @property
    def retrieval(self) -> int:
        """The number of heads with a score of 0.1 or more, which the paper calls retrieval heads."""
        return sum(score >= RETRIEVAL for row in self.scores for score in row)

    def as_dict(self) -> dict[str, Any]:
        """The content of ``heads.json``, which ``masked-heads:heads=FILE`` reads."""
        return {"heads": self.text, **asdict(self)}
