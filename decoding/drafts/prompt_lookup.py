"""Drafts by lookup: what followed the last tokens where they stood before, in the prompt, a context or the text itself.

Source: Saxena, "Prompt Lookup Decoding" (2023). Here the longest match counts, of several the last, and one token is a
match where the same token followed it each time. A copy that comes to the end of the text goes on in what it has
copied: a text that repeats itself is foretold as far as drafts are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from decoding.drafts.proposer import Drafts, Proposer, drafts_of

__all__ = ["PromptLookup"]

LONGEST = 6  # tokens that are compared
# Of drafts behind a match that other tokens have followed too, and behind matches of 1 to 6 tokens that one token has
# always followed: what texts of SmolLM2-135M show.
RATES = (0.2, 0.45, 0.55, 0.7, 0.75, 0.8, 0.88)
AMBIGUOUS = 0


class PromptLookup(Proposer):
    """Proposes what followed the last tokens of a text where they stood before.

    Kinds of drafts are lengths of the match: a draft that is accepted makes it longer by one. Before them comes the
    kind of matches after which texts have gone on in several ways.

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
        return drafts_of([tokens for tokens, _ in found], self.device, [kind for _, kind in found])


class _Match(NamedTuple):
    """The last place where an n-gram stands.

    Attributes:
        source: the text; None for the row's own.
        end: index of the token behind it.
        token: that token.
        ambiguous: whether another token has followed it elsewhere.
    """

    source: Sequence[int] | None
    end: int
    token: int
    ambiguous: bool


class _Index:
    """The n-grams of one row's texts, and what follows each."""

    def __init__(self, sources: Sequence[Sequence[int]]) -> None:
        self._last: dict[tuple[int, ...], _Match] = {}
        self._indexed = 0
        for source in sources:
            for end in range(1, len(source)):
                self._add(source, end, source)

    def following(self, text: Sequence[int], n: int, behind: Sequence[int] = ()) -> tuple[Sequence[int], int]:
        """At most n tokens after the last match of the end of the text and what is behind it, which is not indexed;
        and their kind.
        """
        if n == 0:
            return (), 0
        for end in range(max(self._indexed, 1), len(text)):  # n-grams that something follows already
            self._add(text, end, None)
        self._indexed = len(text)
        end_of_text = [*text[-LONGEST:], *behind][-LONGEST:]
        for size in range(len(end_of_text), 0, -1):
            found = self._last.get(tuple(end_of_text[-size:]))
            if found is None or (size == 1 and found.ambiguous):
                continue
            kind = AMBIGUOUS if found.ambiguous else size
            if found.source is None:
                return _repeated([*text[found.end : found.end + n], *behind], n), kind
            return found.source[found.end : found.end + n], kind
        return (), 0

    def _add(self, text: Sequence[int], end: int, source: Sequence[int] | None) -> None:
        token = text[end]
        here, ambiguous = _Match(source, end, token, False), _Match(source, end, token, True)
        last = self._last
        for size in range(1, min(LONGEST, end) + 1):
            n_gram = tuple(text[end - size : end])
            before = last.get(n_gram)
            other = before is not None and (before.ambiguous or before.token != token)
            last[n_gram] = ambiguous if other else here


def _repeated(tokens: Sequence[int], n: int) -> Sequence[int]:
    """At most n tokens to copy from the text itself: where it ends, the copy goes on in what it has copied."""
    return [tokens[i % len(tokens)] for i in range(n)]
