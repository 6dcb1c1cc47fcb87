"""Drafts whose acceptance a test chooses: what is known to be chosen next, with wrong tokens at drawn places."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import decoding
from decoding.drafts.proposer import Drafts, Proposer

__all__ = ["Scripted", "drafted", "rows_of", "scripted"]


class Scripted(Proposer):
    """Proposes the continuation of known texts.

    Args:
        texts: all tokens of each row, those to come included, without padding.
        vocab: of the model; wrong drafts, and those behind the end of a text, are drawn from it.
        wrong: probability that a draft is wrong.
        short: probability that a row gets fewer drafts in a round than it wants, perhaps none.
        seed: of what is drawn.
        sure: probability that the drafts' distributions give to the drafts; None leaves the distributions out.
        ahead: whether drafts of the next round are proposed in a round.
        bad: the wrong drafts, and what stands behind drafts; None draws them.

    Attributes:
        rounds: of each round, the tokens that each row had before it.
        released: True once it has been released.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[int]],
        vocab: int,
        wrong: float = 0.3,
        short: float = 0.3,
        seed: int = 0,
        sure: float | None = None,
        bad: int | None = None,
        ahead: bool = True,
    ) -> None:
        self.texts, self.vocab, self.wrong, self.short, self.sure = texts, vocab, wrong, short, sure
        self.rounds: list[list[int]] = []
        self.released = False
        self._ahead = ahead
        self._draw = random.Random(seed)
        self._bad = bad

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        """The tokens that follow; the texts must be those that are known."""
        assert not self.released
        self.rounds.append([len(text) for text in texts])
        for known, text, n in zip(self.texts, texts, most, strict=True):
            if n:  # a row that has not ended, and of which nothing was proposed ahead
                assert list(known[: len(text)]) == list(text), "the text is not what it is without drafts"
        return self._following([len(text) for text in texts], most)

    def propose_behind(
        self, texts: Sequence[Sequence[int]], behind: Sequence[Sequence[int]], most: Sequence[int]
    ) -> Drafts | None:
        """The tokens that follow so many more, whatever these are."""
        assert not self.released
        lengths = [len(text) + len(more) for text, more in zip(texts, behind, strict=True)]
        return self._following(lengths, most) if self._ahead else None

    def _following(self, lengths: Sequence[int], most: Sequence[int]) -> Drafts:
        rows = []
        for known, length, n in zip(self.texts, lengths, most, strict=True):
            count = self._draw.randint(0, n) if self._draw.random() < self.short else n
            ahead = [*known[length : length + count]]
            ahead += [self._wrong() for _ in range(count - len(ahead))]
            rows.append([self._wrong() if self._draw.random() < self.wrong else t for t in ahead])
        counts = [len(row) for row in rows]
        width = max([0, *counts])
        # What stands behind a row's drafts is of no meaning, so it is anything.
        tokens = torch.tensor([[*row, *[self._wrong()] * (width - len(row))] for row in rows])
        tokens = tokens.long().view(len(rows), width)
        if self.sure is None:
            return Drafts(tokens, counts)
        spread = torch.full((*tokens.shape, self.vocab), (1 - self.sure) / (self.vocab - 1))
        return Drafts(tokens, counts, spread.scatter(2, tokens[..., None], self.sure))

    def _wrong(self) -> int:
        return self._draw.randrange(self.vocab) if self._bad is None else self._bad

    def release(self) -> None:
        self.released = True

    @property
    def taken(self) -> list[tuple[int, ...]]:
        """How many tokens each row took in each round but the last."""
        pairs = zip(self.rounds, self.rounds[1:], strict=False)
        return [tuple(b - a for a, b in zip(before, after, strict=True)) for before, after in pairs]


def rows_of(sequences: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The tokens of each row of what ``generate`` returned, without the padding of the prompt, whose mask is given."""
    if mask is None:
        return sequences.tolist()
    return [
        [token for token, real in zip(row[: len(kept)], kept, strict=True) if real] + row[len(kept) :]
        for row, kept in zip(sequences.tolist(), mask.tolist(), strict=True)
    ]


@contextlib.contextmanager
def scripted(sequences: Tensor, mask: Tensor | None, vocab: int, **options: Any) -> Iterator[Scripted]:
    """Calls with drafts have these, whatever drafts they ask for.

    Args:
        sequences: what the call returns without drafts.
        mask: of its prompt.
        vocab: see :class:`Scripted`.
        options: likewise.
    """
    proposer = Scripted(rows_of(sequences, mask), vocab, **options)
    with mock.patch("decoding.generation.strategy.open_proposer", return_value=proposer):
        yield proposer


def drafted(
    model: Any, sequences: Tensor, inputs: Any, *, draft_tokens: int | str = 3, script: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, Scripted]:  # fmt: skip
    """What a call gives with scripted drafts, and these.

    Args:
        model: the model.
        sequences: what it returns without drafts.
        inputs: ids and mask.
        draft_tokens: of the call.
        script: options of :class:`Scripted`.
        options: of the call.
    """
    vocab = model.config.get_text_config(decoder=True).vocab_size
    with scripted(sequences, inputs.get("attention_mask"), vocab, **(script or {})) as proposer:
        output = decoding.generate(model, **inputs, drafts="prompt-lookup", draft_tokens=draft_tokens, **options)
    assert proposer.released
    return output, proposer
