"""Scores of continuations under several strategies at once: what they have in common is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from decoding.errors import InputError, OptionError
from decoding.models.adapters import unwrapped
from decoding.models.devices import input_device
from decoding.models.inputs import check_inputs
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.fused_streams import FusedStreams
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.stream.prepare import prepare_inputs
from decoding.stream.token_tree import TokenTree

__all__ = ["Scorer", "Scores", "ScoringRequest"]

# Logits held at once are kept below this many numbers, so that long continuations of large vocabularies fit.
NUMBERS_AT_ONCE = 2**24
# Texts share a forward pass as long as they have at most this many tokens together.
TOKENS_AT_ONCE = 512


ScoringRequest = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Token ids of a prompt, behind what is read already, and those of its continuations."""


@dataclass(frozen=True)
class Scores:
    """What a strategy says of the tokens of one continuation.

    Attributes:
        normalized: (n,) float32, log-softmax of its scores over the plausible tokens.
        raw: (n,) float32, its scores as they are; the model's own log-probabilities where there is no strategy.
    """

    normalized: Tensor
    raw: Tensor


class Scorer:
    """Scores continuations of prompts that begin alike, under several strategies at once.

    The common beginning is read once, when the scorer is made. Prompts and their continuations are then read behind
    it, many in one forward pass, each beginning that they share once (:class:`decoding.stream.token_tree.TokenTree`). Strategies
    share the readings that they have in common: one of the expert serves them all.

    Args:
        model: a decoder-only transformers model.
        prefix: (length,) token ids, at least one, that every prompt begins with.
        strategies: contrast strategies; None for the model's own log-probabilities.
        tokenizer: for strategies with texts of their own.
        max_branch_tokens: texts share a forward pass as long as they have at most so many tokens together; by default
            ``TOKENS_AT_ONCE``.
        floor: the score of a token that is not plausible.

    Raises:
        OptionError: a strategy that cannot score.
        InputError: an empty prefix, or one that leaves no room in the context.
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
        self.prefix = list(prefix)
        self.strategies = [_scoring(each, tokenizer) for each in strategies]
        self.max_branch_tokens = TOKENS_AT_ONCE if max_branch_tokens is None else max_branch_tokens
        self.floor = floor
        if not self.prefix:
            raise InputError("the prompt is empty: give at least one token")
        # A reader of the last token of each prompt has read nothing that its prompts have in common.
        self._apart = [any(each.from_last_token for each in self._readers(strategy)) for strategy in self.strategies]
        self._together = [each for each, apart in zip(self.strategies, self._apart, strict=True) if not apart]
        self._panel = SharedReaders(self, self.prefix, self._together) if self._together else None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go of the caches, and of what hangs on the model."""
        if self._panel is not None:
            self._panel.streams.release()

    @torch.no_grad()
    def score(self, requests: Sequence[ScoringRequest]) -> list[list[list[Scores]]]:
        """Scores of continuations.

        Args:
            asked: for each prompt its token ids behind the prefix (perhaps none), and the token ids of its
                continuations, each at least one.

        Returns:
            For each prompt, for each strategy, one :class:`Scores` a continuation.

        Raises:
            InputError: an empty continuation, or one past a reader's context.
        """
        together = self._panel.score(requests) if self._panel is not None else [[] for _ in requests]
        scored = []
        for (prompt, continuations), shared in zip(requests, together, strict=True):
            rest = iter(shared)
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
        """As :meth:`score` for one prompt and strategy, with readers of their own."""
        panel = SharedReaders(self, [*self.prefix, *prompt], [strategy])
        try:
            return panel.score([((), continuations)])[0][0]
        finally:
            panel.streams.release()

    def _readers(self, strategy: ContrastStrategy) -> list[Reader]:
        return strategy.readers(self.model, 1)


class SharedReaders:
    """The readers of several strategies over one prefix; those that read the same with the same weights are one."""

    def __init__(self, scorer: Scorer, prefix: Sequence[int], strategies: Sequence[ContrastStrategy]) -> None:
        self.scorer = scorer
        self.prefix = list(prefix)
        self.strategies = list(strategies)
        readers, self.roles = _union([scorer._readers(each) for each in strategies])
        # By role of the union and whether lower layers pass the final norm: the layers that some strategy asks for.
        wanted: dict[tuple[str, bool], set[int]] = {}
        for strategy, roles in zip(strategies, self.roles, strict=True):
            for role, exits in roles.values():
                if exits:
                    wanted.setdefault((role, strategy.exit_norm), set()).update(exits)
        self.wanted = {key: tuple(sorted(exits)) for key, exits in wanted.items()}
        model = scorer.model
        ids = torch.tensor([self.prefix], device=input_device(model))
        check_inputs(model, ids, {})
        inputs, kwargs, config = prepare_inputs(model, input_ids=ids, attention_mask=torch.ones_like(ids))
        self.streams = FusedStreams(
            model, readers, inputs, kwargs, config, restorable=True, fuse=all(each.fuse for each in strategies)
        )
        planes = len(readers) + sum(map(len, self.wanted.values()))
        self.at_once = max(1, NUMBERS_AT_ONCE // (planes * model.config.get_text_config(decoder=True).vocab_size))

    def score(self, requests: Sequence[ScoringRequest]) -> list[list[list[Scores]]]:
        """See :meth:`Scorer.score`."""
        for prompt, continuations in requests:
            self._check(prompt, continuations)
        scored: list[list[list[Any]]] = [[[None] * len(each) for _ in self.strategies] for _, each in requests]
        for members in self._passes(requests):
            texts = [([*requests[i][0]], [*requests[i][1][j]]) for i, j in members]
            for strategy, scores in enumerate(self._one_pass(texts)):
                for (i, j), each in zip(members, scores, strict=True):
                    scored[i][strategy][j] = each
        return scored

    def _check(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> None:
        for index, each in enumerate(continuations):
            if not len(each):
                raise InputError(f"continuation {index} is empty: give at least one token")
            for role, length, context in self.streams.lengths():
                if context is not None and length + len(prompt) + len(each) > context:
                    who = "the model" if role == EXPERT else f"the {role}"
                    raise InputError(
                        f"continuation {index}: prompt and continuation have {length + len(prompt)} + {len(each)} "
                        f"tokens, which is more than {who}'s context of {context}"
                    )

    def _passes(self, requests: Sequence[ScoringRequest]) -> Iterator[list[tuple[int, int]]]:
        """Which (prompt, continuation)s go through one forward pass: whole prompts as long as they fit."""
        limit, shared = self.scorer.max_branch_tokens, self.streams.uses_tree_attention
        members: list[tuple[int, int]] = []
        filled = 0
        for i, (prompt, continuations) in enumerate(requests):
            texts = [[*prompt, *each[:-1]] for each in continuations]
            whole = len(TokenTree(texts)) if shared else sum(map(len, texts))
            # One that fills more than a pass is cut between its continuations, and its prompt read again in each.
            pieces = [(range(len(texts)), whole)] if whole <= limit else [([j], len(t)) for j, t in enumerate(texts)]
            for piece, size in pieces:
                if members and filled + size > limit:
                    yield members
                    members, filled = [], 0
                members += [(i, j) for j in piece]
                filled += size
        if members:
            yield members

    def _one_pass(self, texts: Sequence[tuple[list[int], list[int]]]) -> list[list[Scores]]:
        """For each strategy the scores of the continuation of each (prompt, continuation)."""
        tree = TokenTree([[*prompt, *each[:-1]] for prompt, each in texts])
        readings = self.streams.forward_tree(tree)
        # A token is foretold where its text stands before it: after the prefix (place 0) or after a node.
        predicted_positions = [
            place
            for (prompt, _), path in zip(texts, tree.paths, strict=True)
            for place in [0, *(node + 1 for node in path)][len(prompt) :]
        ]
        given = [token for _, each in texts for token in each]
        device = input_device(self.scorer.model)
        places, which = torch.tensor(predicted_positions).unique(return_inverse=True)  # ascending
        order = which.argsort(stable=True)
        tokens, which = torch.tensor(given)[order], which[order]
        parts = []
        for start in range(0, len(places), self.at_once):
            end = min(start + self.at_once, len(places))
            low, high = torch.searchsorted(which, torch.tensor([start, end])).tolist()
            rows, chosen = (each[low:high].to(device) for each in (which - start, tokens))
            parts.append(self._chosen(readings, places[start:end].to(device), rows, chosen))
        scores = torch.empty(len(self.strategies), 2, len(given))
        scores[..., order] = torch.cat(parts, dim=-1).clamp_min(self.scorer.floor).cpu()
        lengths = [len(each) for _, each in texts]
        return [
            [Scores(*pair) for pair in zip(normalized.split(lengths), raw.split(lengths), strict=True)]
            for normalized, raw in scores
        ]

    def _chosen(self, readings: list[Any], places: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """(strategies, 2, n) normalized and raw scores of ``tokens`` (n,) at ``places[rows]``."""
        finals, early = self.streams.logits_at(readings, places, self.wanted)
        found = []
        for strategy, roles in zip(self.strategies, self.roles, strict=True):
            heard = {
                own: ReaderLogits(finals[role], self._exits(early, role, exits, strategy.exit_norm))
                for own, (role, exits) in roles.items()
            }
            given = strategy.contrast(heard).masked[0]  # (places, vocab)
            rows, tokens = rows.to(given.device), tokens.to(given.device)
            raw = given[rows, tokens]
            normalized = raw - given.logsumexp(-1)[rows]
            found.append(torch.stack([normalized, normalized if isinstance(strategy, _Plain) else raw]))
        scores = torch.stack(found)
        if bool(scores.isnan().any()):
            self.streams.check_numbers(finals)
        return scores

    def _exits(self, early: dict[tuple[str, bool], Tensor], role: str, exits: Sequence[int], norm: bool) -> Any:
        """(exits, 1, places, vocab) of those that a strategy asked for; None for none."""
        if not exits:
            return None
        there = self.wanted[role, norm]
        logits = early[role, norm]
        return logits if there == tuple(exits) else logits[[there.index(each) for each in exits]]


class _Plain(ContrastStrategy):
    """The model's own probabilities, as a contrast of one."""

    name = "greedy"

    def readers(self, model: Any, rows: int) -> list[Reader]:
        return [Reader(EXPERT)]

    def contrast(self, heard: Any) -> Contrast:
        final = heard[EXPERT].final
        return Contrast(lambda alpha: final, lambda: final, None)


def _scoring(strategy: Any, tokenizer: Any) -> ContrastStrategy:
    """What scores under a strategy.

    Raises:
        OptionError: it cannot.
    """
    if strategy is None:
        return _Plain()
    if isinstance(strategy, ContrastStrategy):
        return cast(ContrastStrategy, strategy.with_tokenizer(tokenizer))
    name = getattr(strategy, "name", repr(strategy))
    raise OptionError(
        f"strategy={name}: it ranks candidates by looking ahead and gives no score to a given token; accepted are "
        "ContrastiveDecoding, DoLa, ContextAware, LOL, or None for the model's own log-probabilities"
    )


def _union(groups: Sequence[Sequence[Reader]]) -> tuple[list[Reader], list[dict[str, tuple[str, tuple[int, ...]]]]]:
    """Readers of several strategies, those that read the same only once; for each strategy, by its own role, the role
    in the union and the layers after which it leaves.
    """
    union: dict[tuple[Any, ...], Reader] = {}
    roles: list[dict[str, tuple[str, tuple[int, ...]]]] = []
    for group in groups:
        own = {}
        for reader in group:
            prefix = None if reader.prefix is None else tuple(map(tuple, reader.prefix))
            key = (id(reader.model), reader.adapter, prefix, reader.from_last_token)
            if key not in union:
                names = {each.role for each in union.values()}
                number = next(n for n in range(1, len(union) + 2) if _numbered(reader.role, n) not in names)
                union[key] = dataclasses.replace(reader, role=_numbered(reader.role, number))
            known = union[key]
            exits = tuple(sorted({*known.exits, *reader.exits}))
            union[key] = dataclasses.replace(known, exits=exits)
            own[reader.role] = (known.role, reader.exits)
        roles.append(own)
    return list(union.values()), roles


def _numbered(role: str, number: int) -> str:
    return role if number == 1 else f"{role} {number}"
