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
        kinds: of each row the kind of its first draft, an index into :attr:`Proposer.rates`; each draft behind it is of
            the next kind. None where all are of the first.
    """

    tokens: Tensor
    counts: Sequence[int]
    probabilities: Tensor | None = None
    kinds: Sequence[int] | None = None

    def kind(self, row: int) -> int:
        """The kind of a row's first draft."""
        return 0 if self.kinds is None else self.kinds[row]

    def part(self, begin: int, counts: Sequence[int]) -> Drafts:
        """The drafts from a place on, ``counts[i]`` of row i at most."""
        n = max(counts, default=0)
        cut = slice(begin, begin + n)
        left = [max(min(count, own - begin), 0) for count, own in zip(counts, self.counts, strict=True)]
        kinds = None if self.kinds is None else [kind + begin for kind in self.kinds]
        probabilities = None if self.probabilities is None else self.probabilities[:, cut]
        return Drafts(self.tokens[:, cut], left, probabilities, kinds)

    def with_rows(self, rows: Sequence[int], other: Drafts) -> Drafts:
        """The same drafts, but for some rows, which have those of ``other``; both were drawn, or neither."""
        if not rows:
            return self
        counts = [other.counts[row] if row in rows else count for row, count in enumerate(self.counts)]
        width = max(self.tokens.shape[1], other.tokens.shape[1])
        taken = list(rows)

        def joined(own: Tensor, others: Tensor) -> Tensor:
            whole = own.new_zeros(len(own), width, *own.shape[2:])
            whole[:, : own.shape[1]] = own
            whole[taken, : others.shape[1]] = others[taken]
            return whole[:, : max(counts)]

        probabilities = self.probabilities
        if other.probabilities is not None:
            own = other.probabilities[:, :0] if probabilities is None else probabilities
            probabilities = joined(own, other.probabilities)
        kinds = [(other if row in rows else self).kind(row) for row in range(len(counts))]
        return Drafts(joined(self.tokens, other.tokens), counts, probabilities, kinds)

    def filled_up(self, n: int) -> Drafts:
        """The same drafts, with tokens of no meaning behind them: (batch, n) or more."""
        return replace(self, tokens=torch.nn.functional.pad(self.tokens, (0, max(n - self.tokens.shape[1], 0))))


class Proposer(ABC):
    """Proposes drafts for one call.

    Attributes:
        rates: of each kind of drafts, the share that is accepted as far as is known beforehand; the kinds are in order,
            the best last. One that says nothing of its drafts is believed until they are rejected.
        cost: of a draft, in steps of the generating model. Drafts that cost nothing are proposed without being read
            too, since what is chosen in their place tells how good they are.
    """

    rates: Sequence[float] = (1.0,)
    cost: float = 0.0

    @abstractmethod
    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        """Propose what may follow each text.

        Args:
            texts: the tokens of each row so far, without padding; each continues what it was before, in which only
                drafts of this proposer's have been replaced.
            most: how many drafts are wanted of each row; 0 for a row that has ended.
        """

    def propose_behind(
        self, texts: Sequence[Sequence[int]], behind: Sequence[Sequence[int]], most: Sequence[int]
    ) -> Drafts | None:
        """Propose what may follow each text and tokens behind it that may not come to be, where that costs nothing.

        Args:
            texts: those of the last :meth:`propose`.
            behind: tokens after each.
            most: how many drafts are wanted of each row.

        Returns:
            The drafts; None of a proposer that has passes of its own to run, which would often be in vain.
        """
        return None

    def release(self) -> None:  # noqa: B027 - most hold nothing
        """Free everything large."""


def drafts_of(rows: Sequence[Sequence[int]], device: torch.device, kinds: Sequence[int] | None = None) -> Drafts:
    """Drafts of rows of several lengths, which were not drawn."""
    width = max(map(len, rows), default=0)
    tokens = [[*row, *[0] * (width - len(row))] for row in rows]
    ids = torch.tensor(tokens, dtype=torch.long, device=device).view(len(rows), width)
    return Drafts(ids, list(map(len, rows)), kinds=kinds)
