"""Drafts of the next round, proposed while a round is read: behind its drafts and the token that may end it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decoding.drafts.proposer import Drafts, Proposer

__all__ = ["DraftsAhead"]


class DraftsAhead:
    """What a proposer is asked for in one round, and what of it the next round can have.

    Args:
        proposer: of the call.
    """

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self._found: _Found | None = None

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        """The drafts of a round: those that were proposed ahead, of rows whose text went on as was guessed; of the
        others what is proposed now. See :meth:`Proposer.propose`.
        """
        found, self._found = self._found, None
        guessed = [] if found is None else [row for row, n in enumerate(most) if n and found.is_text(row, texts[row])]
        drafts = self._proposer.propose(texts, [0 if row in guessed else n for row, n in enumerate(most)])
        return drafts if found is None else drafts.with_rows(guessed, found.drafts.part(1, most))

    def further(self, texts: Sequence[Sequence[int]], drafts: Drafts, most: Sequence[int]) -> Drafts | None:
        """Propose what follows a round whose drafts are all accepted.

        Args:
            texts: of each row, before the round.
            drafts: of the round.
            most: drafts of the next round that are wanted of each row; 0 for a row that is not to go on.

        Returns:
            Of each row the token that may end the round, and the drafts behind it; None of a proposer that has none.
        """
        behind = [row[:count] for row, count in zip(drafts.tokens.tolist(), drafts.counts, strict=True)]
        proposed = self._proposer.propose_behind(texts, behind, [n + 1 if n else 0 for n in most])
        if proposed is not None:
            self._found = _Found(proposed, behind, list(map(len, texts)))
        return proposed


@dataclass(frozen=True)
class _Found:
    """Drafts behind a round, and what they were proposed behind.

    Attributes:
        drafts: of each row, the token that ends the round included.
        behind: the round's own drafts.
        lengths: of the texts before it.
    """

    drafts: Drafts
    behind: Sequence[Sequence[int]]
    lengths: Sequence[int]

    def is_text(self, row: int, text: Sequence[int]) -> bool:
        """True where a row's text is the one that was guessed, and something was proposed behind it."""
        guessed = [*self.behind[row], int(self.drafts.tokens[row, 0])] if self.drafts.counts[row] > 1 else None
        return guessed is not None and list(text[self.lengths[row] :]) == guessed
