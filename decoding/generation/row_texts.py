"""The texts of a batch whose rows have lengths of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["RowTexts"]

SPARE = 256  # columns


class RowTexts:
    """The tokens of each row, from the first column on: those of the prompt, padding included, then its new ones.

    Args:
        input_ids: (batch, length) the prompt.
        mask: (batch, at least length) 1 for tokens, 0 for padding, of which the last ``length`` columns count; None, or
            a mask of another form, for a prompt without padding.
        pad: what stands behind a row's end.

    Attributes:
        lengths: columns of each row.
        pad: what stands behind a row's end.
        tokens: of each row, without padding.
    """

    def __init__(self, input_ids: Tensor, mask: Tensor | None, pad: int) -> None:
        rows, length = input_ids.shape
        self.lengths = [length] * rows
        self.prompt_length = length
        self.pad = pad
        self._ids = torch.nn.functional.pad(input_ids, (0, SPARE), value=pad)
        self.tokens: list[list[int]] = input_ids.tolist()
        if mask is not None and mask.dim() == 2 and len(mask) == rows and 0 < length <= mask.shape[1]:
            present = mask[:, -length:].bool().to(input_ids.device)
            self.tokens = [row[kept].tolist() for row, kept in zip(input_ids, present, strict=True)]

    @property
    def ids(self) -> Tensor:
        """(batch, columns of the longest row) token ids; a row's are followed by padding."""
        return self._ids[:, : max(self.lengths)]

    def append(self, rows: Sequence[int], tokens: Tensor) -> list[int]:
        """Add a token to each of some rows; returns them.

        Args:
            rows: indices of the rows.
            tokens: (batch,) of all rows.
        """
        if max(self.lengths) == self._ids.shape[1]:
            self._ids = torch.nn.functional.pad(self._ids, (0, self._ids.shape[1]), value=self.pad)
        added: list[int] = tokens.tolist()
        columns = [self.lengths[row] for row in rows]
        self._ids[list(rows), columns] = tokens[list(rows)]
        for row in rows:
            self.lengths[row] += 1
            self.tokens[row].append(added[row])
        return [added[row] for row in rows]

    def continued(self, tokens: Tensor) -> Tensor:
        """(batch, columns + n) token ids with (batch, n) more tokens after the end of each row."""
        ids = torch.nn.functional.pad(self.ids, (0, tokens.shape[1]), value=self.pad)
        columns = torch.tensor(self.lengths, device=ids.device)[:, None] + torch.arange(
            tokens.shape[1], device=ids.device
        )
        return ids.scatter(1, columns, tokens)

    def stopped(self, criteria: Any, rows: Sequence[int], scores: Callable[[int], Any]) -> list[bool]:
        """Whether the criteria stop each of some rows, each asked about the row's own text.

        Args:
            criteria: of the call.
            rows: indices of the rows.
            scores: tells the scores of so many new tokens of every row.
        """
        stopped: dict[int, Any] = {}
        for length in {self.lengths[row] for row in rows}:
            stopped[length] = criteria(self._ids[:, :length], scores(length - self.prompt_length)).tolist()
        return [stopped[self.lengths[row]][row] for row in rows]

    def cut(self, length: int) -> Tensor:
        """(batch, length) token ids, with padding behind the rows that are shorter."""
        columns = torch.arange(length, device=self._ids.device)
        ends = torch.tensor(self.lengths, device=self._ids.device)
        return torch.where(columns < ends[:, None], self._ids[:, :length], self.pad)
