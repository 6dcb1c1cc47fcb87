"""Scores of a prompt's tokens, under the strategy of the request that asks for their log-probabilities.

vLLM takes these from the model's ``compute_logits`` after a step's sampling, past all processors of logits. It gives
rows of one request (V1 runner) or of a whole step (V2) and does not say whose they are. So the forward pass writes into
each row the number of its token in the step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.serving.vllm.groups import Entry
from decoding.serving.vllm.rows import RowReaders, grouped
from decoding.serving.vllm.scores import masked_scores, scores_of

__all__ = ["PromptScores", "token_numbers"]

NUMBER_WIDTH = 8  # the bytes of a number; rows of half precision stay aligned to 16 bytes
ROWS_AT_ONCE = 256  # bounds the logits of lower layers and amateurs that are held beside those of the model


def token_numbers(hidden: Tensor) -> Tensor:
    """(tokens, 8) which token of its step each row is, as the bytes of an integer: every dtype has them exactly."""
    numbers = torch.arange(len(hidden), device=hidden.device)
    return numbers.view(torch.uint8).view(-1, NUMBER_WIDTH).to(hidden.dtype)


class PromptScores:
    """The requests of a step, some of which ask for log-probabilities of their prompt.

    Args:
        entries: places in the step's batch, and what stands there.
        starts: the number of each place's first token, ascending; None for one token a place.
    """

    def __init__(self, entries: Iterable[tuple[int, Entry]], starts: Sequence[int] | None = None) -> None:
        self._entries = dict(entries)
        self.starts = starts

    def of(self, model: Any, hidden: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Scores (rows, vocab) of wide rows (rows, width): their requests' where these have a strategy, else logits.

        A token that is not plausible has -inf.

        Args:
            model: a :class:`decoding.serving.vllm.model.ReadersMixin`.
            hidden: rows of any tokens of the step.
            logits_of: the model's logits of wide rows.
        """
        numbers = hidden[:, -NUMBER_WIDTH:].to(torch.uint8).contiguous().view(torch.int64)[:, 0].tolist()
        return torch.cat(
            [
                self._scores(model, rows, logits_of(rows), numbers[start : start + ROWS_AT_ONCE])
                for start, rows in zip(range(0, len(hidden), ROWS_AT_ONCE), hidden.split(ROWS_AT_ONCE), strict=True)
            ]
        )

    def _scores(self, model: Any, hidden: Tensor, logits: Tensor, numbers: Sequence[int]) -> Tensor:
        """Scores (rows, vocab) of rows whose tokens have these numbers."""
        scores = logits.float()
        entries = ((at, self._entries.get(self._place(number))) for at, number in enumerate(numbers))
        for rows in grouped(((at, entry) for at, entry in entries if entry is not None), hidden.device):
            readers = RowReaders(model, hidden[rows.at], logits[rows.at])
            scores[rows.at] = masked_scores(rows, scores_of(rows, readers), readers)
        return scores

    def _place(self, number: int) -> int:
        """The place in the batch of a token's request."""
        return number if self.starts is None else bisect_right(self.starts, number) - 1
