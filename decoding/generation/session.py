"""The session: one ``generate()`` call of a strategy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from decoding.stream.output import ForwardOutput

__all__ = ["Session", "argmax_first", "most_probable"]


class Session(ABC):
    """One ``generate()`` call of a strategy: owns its streams and all else that changes.

    Attributes:
        logits: (batch, vocab) the model's own next-token logits, before any processor.
        reading: of the tokens read last (what ``output_hidden_states`` and ``output_attentions`` report).
    """

    logits: Tensor
    reading: ForwardOutput

    @abstractmethod
    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """(batch, vocab) float32 next-token scores; -inf for tokens that may not be chosen.

        Args:
            input_ids: (batch, length) all tokens so far.
            logits_processor: callable on (input_ids, float32 logits), as transformers' processor lists are.
        """

    def greedy(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """(batch,) the tokens with the largest of :meth:`scores`, where these themselves are not wanted; -1 where no
        token may be chosen, since all scores are -inf or one is NaN.

        :meth:`advance` is then given these tokens, but for finished rows.
        """
        return most_probable(self.scores(input_ids, logits_processor))

    def rescored(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As :meth:`scores`, as a processor among those of ``generate``.

        Args:
            input_ids: (batch, length) all tokens so far.
            scores: (batch, vocab) the model's logits (or log-probabilities) after the processors before this one.
        """
        return self.scores(input_ids, lambda _ids, _logits: scores.float())

    @abstractmethod
    def advance(self, tokens: Tensor) -> None:
        """Take (batch,) tokens chosen from the last scores. A finished row may be given any token."""

    def follow(self, tokens: Tensor) -> None:
        """Take (batch,) tokens that somebody else chose, perhaps against the scores."""
        self.advance(tokens)

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, what the last ``scores`` looked at included."""

    @abstractmethod
    def close(self) -> Any:
        """Finish the model's cache, holding every token but the last, and return it."""

    @abstractmethod
    def release(self) -> None:
        """Let go of everything large; the session is of no use afterwards."""


def most_probable(scores: Tensor) -> Tensor:
    """(batch,) the tokens with the largest of (batch, vocab) scores; -1 where these are all -inf or one is NaN."""
    tokens = scores.argmax(-1, keepdim=True)
    return torch.where(scores.gather(1, tokens) > -torch.inf, tokens, -1)[:, 0]


def argmax_first(matches: Tensor) -> Tensor:
    """(batch,) index of the first True of (batch, n); 0 where there is none."""
    return matches.to(torch.uint8).argmax(dim=1)
