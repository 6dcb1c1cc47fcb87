"""Scores of continuations under several strategies, whose common readers read each text once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from decoding.errors import InputError
from decoding.models.wrappers import text_tokenizer, unwrapped
from decoding.parameters import plain_number, require_count
from decoding.scoring.scores import Scores, ScoringRequest
from decoding.scoring.scoring_strategy import checked_floor, scoring_strategy
from decoding.scoring.shared_readers import SharedReaders, readers_of
from decoding.scoring.token_ids import as_continuations, token_ids
from decoding.strategies.contrast.base import ContrastStrategy

__all__ = ["Scorer"]

# Texts share a forward pass as long as they have at most this many tokens together.
TOKENS_AT_ONCE = 512


class Scorer:
    """Scores continuations of prompts that begin alike, under several strategies.

    The common prefix is read once, when the scorer is made. Prompts and their continuations are then read after it,
    many in one forward pass, each prefix that they share once (:class:`decoding.stream.token_tree.TokenTree`).
    Strategies share their readers: one expert serves them all.

    Args:
        model: a decoder-only transformers model.
        prefix: (length,) token ids, at least one, that every prompt begins with.
        strategies: scorable strategies, in any form that :func:`decoding.generate` takes; None for the model's own
            log-probabilities.
        tokenizer: for strategies that have texts.
        max_branch_tokens: texts share a forward pass as long as they have at most so many tokens together; by default
            ``TOKENS_AT_ONCE``.
        floor: the score of a token that is not plausible.

    Raises:
        OptionError: a strategy that cannot score.
        InputError: an empty prefix, or one that fills the context.
        ModelError: a strategy does not fit the model.

    Example:
        >>> with Scorer(model, few_shot_ids, [None, DoLa("high")]) as scorer:
        ...     plain, dola = scorer.score([(question_ids, [answer_ids, other_ids])])[0]
        >>> plain[0].normalized.sum().item(), dola[1].raw.sum().item()
    """

    def __init__(
        self,
        model: Any,
        prefix: Sequence[int],
        strategies: Sequence[Any],
        *,
        tokenizer: Any = None,
        max_branch_tokens: int | None = None,
        floor: float = -1000.0,
    ) -> None:
        self.model = unwrapped(model)
        tokenizer = text_tokenizer(tokenizer, required=False)
        self.prefix = token_ids(prefix, "prefix")
        no_list = not isinstance(strategies, Iterable) or getattr(strategies, "ndim", 1) == 0
        if no_list or isinstance(strategies, str):
            strategies = [strategies]
        self.strategies = [scoring_strategy(strategy, tokenizer) for strategy in strategies]
        self.max_branch_tokens = TOKENS_AT_ONCE if max_branch_tokens is None else plain_number(max_branch_tokens)
        require_count("max_branch_tokens", self.max_branch_tokens, 1)
        self.floor = checked_floor(floor)
        if not self.prefix:
            raise InputError("the prompt is empty: give at least one token")
        # A reader of the last token of each prompt, or of another prompt, shares no prefix with other prompts.
        self._apart = [
            any(reader.from_last_token or reader.prompt is not None for reader in readers_of(self.model, strategy))
            for strategy in self.strategies
        ]
        together = [strategy for strategy, apart in zip(self.strategies, self._apart, strict=True) if not apart]
        self._shared = self._read(self.prefix, together) if together else None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def release(self) -> None:
        """Free the caches."""
        if self._shared is not None:
            self._shared.streams.release()

    @torch.no_grad()
    def score(self, requests: Sequence[ScoringRequest]) -> list[list[list[Scores]]]:
        """Scores of continuations.

        Args:
            requests: for each prompt its token ids after the prefix (perhaps none), and the token ids of its
                continuations, each at least one.

        Returns:
            For each prompt, for each strategy, one :class:`Scores` a continuation.

        Raises:
            InputError: an empty continuation, or one past a reader's context.
        """
        requests = [
            (token_ids(prompt, "prompt"), [token_ids(ids, "continuation") for ids in as_continuations(continuations)])
            for prompt, continuations in requests
        ]
        together = self._shared.score(requests) if self._shared is not None else [[] for _ in requests]
        scored = []
        for (prompt, continuations), by_strategy in zip(requests, together, strict=True):
            rest = iter(by_strategy)
            scored.append(
                [
                    self._scored_apart(strategy, prompt, continuations) if apart else next(rest)
                    for strategy, apart in zip(self.strategies, self._apart, strict=True)
                ]
            )
        return scored

    def _scored_apart(
        self, strategy: ContrastStrategy, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[Scores]:
        """Scores of the continuations of one prompt under one strategy, with readers for these alone."""
        readers = self._read([*self.prefix, *prompt], [strategy])
        try:
            return readers.score([((), continuations)])[0][0]
        finally:
            readers.streams.release()

    def _read(self, prefix: Sequence[int], strategies: Sequence[ContrastStrategy]) -> SharedReaders:
        return SharedReaders(self.model, prefix, strategies, self.max_branch_tokens, self.floor)
