"""What proposes drafts, and what it proposes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Drafts", "Proposer", "drafts_of"]


@dataclass(frozen=True)
class Drafts:
    """Tokens proposed after the texts of a batch.

    Attributes:
        tokens: (batch, n) token ids; n may be 0.
        counts: how many of them are drafts, of each row; what follows is of no meaning.
        probabilities: (batch, n, vocab) float32, what they were drawn from; None where they were not drawn.
    """

    tokens: Tensor
    counts: Sequence[int]
    probabilities: Tensor | None = None

    def filled_up(self, n: int) -> Drafts:
        """The same drafts, with tokens of no meaning behind them: (batch, n) or more."""
        return replace(self, tokens=torch.nn.functional.pad(self.tokens, (0, max(n - self.tokens.shape[1], 0))))


class Proposer(ABC):
    """Proposes drafts for one call."""

    @abstractmethod
    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        """Propose what may follow each text.

        Args:
            texts: the tokens of each row so far, without padding; each continues what it was before, in which only
                drafts of this proposer's have been replaced.
            most: how many drafts are wanted of each row; 0 for a row that has ended.
        """

    def release(self) -> None:  # noqa: B027 - most hold nothing
        """Free everything large."""


def drafts_of(rows: Sequence[Sequence[int]], device: torch.device) -> Drafts:
    """Drafts of rows of several lengths."""
    width = max(map(len, rows), default=0)
    tokens = [[*row, *[0] * (width - len(row))] for row in rows]
    return Drafts(torch.tensor(tokens, dtype=torch.long, device=device).view(len(rows), width), list(map(len, rows)))
