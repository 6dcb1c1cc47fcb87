"""Drafts by lookup: what followed the last tokens where they stood before, in the prompt, a context or the text itself.

Source: Saxena, "Prompt Lookup Decoding" (2023). Here the longest match counts, of several the last. A copy that comes
to the end of the text goes on in what it has copied: a text that repeats itself is foretold as far as drafts are
wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoding.drafts.proposer import Drafts, Proposer, drafts_of

__all__ = ["PromptLookup"]

LONGEST, SHORTEST = 6, 2  # tokens that must be the same
RATES = (0.3, 0.4, 0.5, 0.7, 0.85)


class PromptLookup(Proposer):
    """Proposes what followed the last tokens of a text where they stood before.

    Kinds of drafts are lengths of the match: a draft that is accepted makes it longer by one.

    Args:
        sources: of each row other texts, such as a context that a second reader has before the prompt.
        device: of the drafts.
    """

    rates = RATES

    def __init__(self, sources: Sequence[Sequence[Sequence[int]]], device: torch.device) -> None:
        self.device = device
        self._rows = [_Index(texts) for texts in sources]

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        """The tokens after the last match of each row; see :meth:`Proposer.propose`."""
        return self._drafts([row.following(text, n) for row, text, n in zip(self._rows, texts, most, strict=True)])

    def propose_behind(
        self, texts: Sequence[Sequence[int]], behind: Sequence[Sequence[int]], most: Sequence[int]
    ) -> Drafts:
        """The tokens after the last match of each row's text with what is behind it; see :class:`Proposer`."""
        return self._drafts(
            [row.following(text, n, more) for row, text, more, n in zip(self._rows, texts, behind, most, strict=True)]
        )

    def _drafts(self, found: Sequence[tuple[Sequence[int], int]]) -> Drafts:
        return drafts_of([tokens for tokens, _ in found], self.device, [max(size - SHORTEST, 0) for _, size in found])


class _Index:
    """The n-grams of one row's texts, and what follows each."""

    def __init__(self, sources: Sequence[Sequence[int]]) -> None:
        self._last: dict[tuple[int, ...], tuple[Sequence[int] | None, int]] = {}  # None is the row's own text
        self._indexed = 0
        for source in sources:
            for end in range(1, len(source)):
                self._add(source, end, source)

    def following(self, text: Sequence[int], n: int, behind: Sequence[int] = ()) -> tuple[Sequence[int], int]:
        """At most n tokens after the last match of the end of the text and what is behind it, which is not indexed;
        and how many tokens match.
        """
        if n == 0:
            return (), 0
        for end in range(max(self._indexed, 1), len(text)):  # n-grams that something follows already
            self._add(text, end, None)
        self._indexed = len(text)
        end_of_text = [*text[-LONGEST:], *behind][-LONGEST:]
        for size in range(len(end_of_text), SHORTEST - 1, -1):
            found = self._last.get(tuple(end_of_text[-size:]))
            if found is not None:
                source, end = found
                if source is None:
                    return _repeated([*text[end : end + n], *behind], n), size
                return source[end : end + n], size
        return (), 0

    def _add(self, text: Sequence[int], end: int, source: Sequence[int] | None) -> None:
        for size in range(SHORTEST, min(LONGEST, end) + 1):
            self._last[tuple(text[end - size : end])] = source, end


def _repeated(tokens: Sequence[int], n: int) -> Sequence[int]:
    """At most n tokens to copy from the text itself: where it ends, the copy goes on in what it has copied."""
    return [tokens[i % len(tokens)] for i in range(n)]
