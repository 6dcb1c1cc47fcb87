"""Readers of several strategies over one prefix, each of which reads a text once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.errors import InputError, OptionError
from decoding.generation.unpadded_text import NO_TOKEN
from decoding.kernels.exponentials import log_sum_exp
from decoding.models.devices import input_device
from decoding.models.inputs import check_inputs
from decoding.models.text_config import vocab_size
from decoding.scoring.scores import Scores, ScoringRequest
from decoding.scoring.scoring_strategy import is_plain
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.contrast.fused_streams import FusedStreams
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.stream.output import ForwardOutput
from decoding.stream.prepare import prepare_inputs
from decoding.stream.token_tree import TokenTree

__all__ = ["SharedReaders", "readers_of"]

# Strategies are given readers' logits of less than this many numbers, so that long continuations of large vocabularies
# fit: their tensors then stay in a CPU's cache, and in memory that the process has.
NUMBERS_AT_ONCE = 2**24
# The head reads hidden states of so many times as many places: a product of 480 rows with a head of 262,144 x 640 takes
# 0.6 of the time a row of one of 60. That is 512 MB of float32 logits at most.
BLOCKS_OF_A_PRODUCT = 8


class SharedReaders:
    """The readers of several strategies over one prefix; those of the same tokens with the same weights are one.

    Args:
        model: a decoder-only transformers model.
        prefix: (length,) token ids, which are read at once.
        strategies: that score.
        max_branch_tokens: texts share a forward pass as long as they have at most so many tokens together.
        floor: the score of a token that is not plausible.

    Raises:
        OptionError: a reader of other inputs than text.
        InputError: a prefix that fills the context.
    """

    def __init__(
        self,
        model: Any,
        prefix: Sequence[int],
        strategies: Sequence[ContrastStrategy],
        max_branch_tokens: int,
        floor: float,
    ) -> None:
        self.model = model
        self.prefix = list(prefix)
        self.strategies = list(strategies)
        self.max_branch_tokens = max_branch_tokens
        self.floor = floor
        readers, self.roles = _union([readers_of(model, strategy) for strategy in strategies])
        # By role in the union and whether lower layers pass the final norm: the layers that any strategy asks for.
        wanted: dict[tuple[str, bool], set[int]] = {}
        for strategy, roles in zip(strategies, self.roles, strict=True):
            for role, exits in roles.values():
                if exits:
                    wanted.setdefault((role, strategy.exit_norm), set()).update(exits)
        self.wanted = {key: tuple(sorted(exits)) for key, exits in wanted.items()}
        ids = torch.tensor([self.prefix], device=input_device(model))
        check_inputs(model, ids, {})
        inputs, kwargs, config = prepare_inputs(model, input_ids=ids, attention_mask=torch.ones_like(ids))
        self.streams = FusedStreams(
            model, readers, inputs, kwargs, config, restorable=True, fuse=all(strategy.fuse for strategy in strategies)
        )
        planes = len(readers) + sum(map(len, self.wanted.values()))
        vocab = vocab_size(model)
        self.positions_at_once = max(1, NUMBERS_AT_ONCE // (planes * vocab))

    def score(self, requests: Sequence[ScoringRequest]) -> list[list[list[Scores]]]:
        """Scores of continuations; see :meth:`Scorer.score`."""
        for prompt, continuations in requests:
            self._check(prompt, continuations)
        scored: list[list[list[Any]]] = [
            [[None] * len(continuations) for _ in self.strategies] for _, continuations in requests
        ]
        for members in self._passes(requests):
            texts = [([*requests[i][0]], [*requests[i][1][j]]) for i, j in members]
            for strategy, all_scores in enumerate(self._one_pass(texts)):
                for (i, j), scores in zip(members, all_scores, strict=True):
                    scored[i][strategy][j] = scores
        return scored

    def _check(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> None:
        for index, continuation in enumerate(continuations):
            if not len(continuation):
                raise InputError(f"continuation {index} is empty: give at least one token")
            for role, length, context in self.streams.lengths():
                if context is not None and length + len(prompt) + len(continuation) > context:
                    reader = "the model" if role == EXPERT else f"the {role}"
                    raise InputError(
                        f"continuation {index}: prompt and continuation have {length + len(prompt)} + "
                        f"{len(continuation)} tokens, which is more than {reader}'s context of {context}"
                    )

    def _passes(self, requests: Sequence[ScoringRequest]) -> Iterator[list[tuple[int, int]]]:
        """Indices of the (prompt, continuation)s of each forward pass: whole prompts as long as they fit."""
        limit, as_tree = self.max_branch_tokens, self.streams.uses_tree_attention
        members: list[tuple[int, int]] = []
        filled = 0
        for i, (prompt, continuations) in enumerate(requests):
            texts = [[*prompt, *continuation[:-1]] for continuation in continuations]
            whole = len(TokenTree(texts)) if as_tree else sum(map(len, texts))
            # One that fills more than a pass is cut between its continuations, and its prompt read again in each.
            parts = [(range(len(texts)), whole)] if whole <= limit else [([j], len(t)) for j, t in enumerate(texts)]
            for part, size in parts:
                if members and filled + size > limit:
                    yield members
                    members, filled = [], 0
                members += [(i, j) for j in part]
                filled += size
        if members:
            yield members

    def _one_pass(self, texts: Sequence[tuple[list[int], list[int]]]) -> list[list[Scores]]:
        """The scores, for each strategy, of the continuation of each (prompt, continuation)."""
        tree = TokenTree([[*prompt, *continuation[:-1]] for prompt, continuation in texts])
        outputs = self.streams.forward_tree(tree)
        # A token is predicted where the text before it ends: after the prefix (position 0) or after a node.
        predicted = [
            (position, new_tokens)
            for (prompt, _), path in zip(texts, tree.paths, strict=True)
            for new_tokens, position in enumerate([0, *(node + 1 for node in path)][len(prompt) :])
        ]
        all_tokens = [token for _, continuation in texts for token in continuation]
        device = input_device(self.model)
        # Texts that are equal so far share a place, unless the prompt of one is longer.
        places, indices = torch.tensor(predicted).unique(dim=0, return_inverse=True)  # ascending
        positions, new_tokens = places.unbind(-1)
        place_of_token = indices
        order = indices.argsort(stable=True)
        tokens, indices = torch.tensor(all_tokens)[order], indices[order]
        prefixes, starts = self._prefixes(texts)
        # Of the tokens predicted at one position, whose prefixes are equal, any has the prefix.
        first = order[torch.searchsorted(indices, torch.arange(len(positions)))]
        starts = starts[first]
        prefixes, starts = prefixes.to(device), starts.to(device)
        measures = _Measures(place_of_token, first, new_tokens)
        parts = []
        for start, end, finals, early in self._logits(outputs, positions.to(device)):
            low, high = torch.searchsorted(indices, torch.tensor([start, end])).tolist()
            rows, chosen = (values[low:high].to(device) for values in (indices - start, tokens))
            input_ids = prefixes[starts[start:end]][None]  # (1, positions, length)
            new = new_tokens.to(device)[None, start:end]
            after = functools.partial(measures.strategy_at, start)
            parts.append(self._chosen_scores(finals, early, new, input_ids, rows, chosen, after))
        scores = torch.empty(len(self.strategies), 2, len(all_tokens), dtype=torch.float32, device="cpu")
        scores[..., order] = torch.cat(parts, dim=-1).clamp_min(self.floor).cpu()
        lengths = [len(continuation) for _, continuation in texts]
        return [
            [Scores(*pair) for pair in zip(normalized.split(lengths), raw.split(lengths), strict=True)]
            for normalized, raw in scores
        ]

    def _logits(
        self, outputs: list[ForwardOutput], positions: Tensor
    ) -> Iterator[tuple[int, int, dict[str, Tensor], dict[tuple[str, bool], Tensor]]]:
        """Blocks of ``positions`` (n,), in order: start, end, and the readers' logits there, as
        :meth:`FusedStreams.logits_at` has them.
        """
        at_once = self.positions_at_once
        for first in range(0, len(positions), at_once * BLOCKS_OF_A_PRODUCT):
            places = positions[first : first + at_once * BLOCKS_OF_A_PRODUCT]
            finals, early = self.streams.logits_at(outputs, places, self.wanted)
            for start in range(0, len(places), at_once):
                end = min(start + at_once, len(places))
                yield (
                    first + start, first + end,
                    {role: logits[:, start:end] for role, logits in finals.items()},
                    {key: logits[:, :, start:end].contiguous() for key, logits in early.items()},
                )  # fmt: skip

    def _prefixes(self, texts: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
        """Windows (all, length), each the text that a token of a continuation comes after, as
        :meth:`ContrastStrategy.contrast` has it; and (tokens,) the window of each token.
        """
        prefix = torch.tensor(self.prefix)
        longest = max(len(prompt) + len(continuation) - 1 for prompt, continuation in texts)
        ids: list[Tensor] = []
        starts: list[int] = []
        end = 0
        for prompt, continuation in texts:
            n = len(continuation)
            text = torch.tensor([*prompt, *continuation[:-1]], dtype=torch.long)
            ids += [torch.full((longest - len(text) + n - 1,), NO_TOKEN), prefix, text]
            starts += range(end, end + n)
            end += len(prefix) + longest + n - 1
        return torch.cat(ids).unfold(0, len(prefix) + longest, 1), torch.tensor(starts)

    def _chosen_scores(
        self,
        finals: Mapping[str, Tensor],
        early: Mapping[tuple[str, bool], Tensor],
        new_tokens: Tensor,
        input_ids: Tensor,
        rows: Tensor,
        tokens: Tensor,
        after: Callable[[ContrastStrategy, Mapping[str, ReaderLogits]], ContrastStrategy],
    ) -> Tensor:
        """(strategies, 2, n) normalized and raw scores of ``tokens`` (n,) at the places ``rows``.

        Args:
            finals: the readers' logits at some places; see :meth:`FusedStreams.logits_at`.
            early: likewise.
            new_tokens: (1, positions) how many tokens of a continuation come before each.
            input_ids: (1, positions, length) the text before each.
            rows: (n,) the place of each token.
            tokens: (n,).
            after: from a strategy and its readers' logits to the strategy after what it measured before the places.
        """
        chosen = []
        for strategy, roles in zip(self.strategies, self.roles, strict=True):
            logits = {
                role: ReaderLogits(finals[shared_role], self._exits(early, shared_role, exits, strategy.exit_norm))
                for role, (shared_role, exits) in roles.items()
            }
            here = after(strategy, logits)
            scores = here.contrast_at(logits, input_ids, new_tokens).masked[0]  # (positions, vocab)
            rows, tokens = rows.to(scores.device), tokens.to(scores.device)
            raw = scores[rows, tokens]
            normalized = raw - log_sum_exp(scores)[rows]
            chosen.append(torch.stack([normalized, normalized if is_plain(strategy) else raw]))
        result = torch.stack(chosen)
        if bool(result.isnan().any()):
            self.streams.check_numbers(finals)
        return result

    def _exits(self, early: Mapping[tuple[str, bool], Tensor], role: str, exits: Sequence[int], norm: bool) -> Any:
        """(exits, 1, positions, vocab) of those that a strategy asked for; None for none."""
        if not exits:
            return None
        wanted = self.wanted[role, norm]
        logits = early[role, norm]
        return logits if wanted == tuple(exits) else logits[[wanted.index(exit_) for exit_ in exits]]


class _Measures:
    """What strategies measure at the places of one pass, on which their scores at later places of a text depend.

    Args:
        places: (tokens,) the place that predicts each token, of all continuations one after the other. What comes
            before a place in its text has a smaller number.
        first: (places,) a token that each place predicts.
        new_tokens: (places,) how many tokens of its continuation come before.
    """

    def __init__(self, places: Tensor, first: Tensor, new_tokens: Tensor) -> None:
        self._places, self._first, self._new_tokens = places, first, new_tokens
        self._known: dict[int, Tensor] = {}  # by the strategy's id, (places,)

    def strategy_at(
        self, start: int, strategy: ContrastStrategy, logits: Mapping[str, ReaderLogits]
    ) -> ContrastStrategy:
        """The strategy at the places from ``start`` on whose logits (1, n, vocab) these are; they come in order."""
        if not strategy.measured_roles:
            return strategy
        measure = strategy.measure(logits)[0]  # (n,)
        known = self._known.setdefault(id(strategy), measure.new_zeros(len(self._first)))
        known[start : start + len(measure)] = measure
        new_tokens = self._new_tokens[start : start + len(measure), None]
        back = torch.arange(int(new_tokens.max()), -1, -1)
        tokens = (self._first[start : start + len(measure), None] - back).clamp(min=0)
        measures = known[self._places[tokens].to(known.device)]  # (n, 1 + most new tokens)
        return strategy.after(measures.masked_fill((back > new_tokens).to(known.device), torch.nan)[None])


def readers_of(model: Any, strategy: ContrastStrategy) -> list[Reader]:
    """A strategy's readers of one text.

    Raises:
        OptionError: a reader of other inputs than text.
    """
    readers = strategy.readers(model, 1)
    for reader in readers:
        if reader.change is not None:
            raise OptionError(
                f"the {reader.role} reads other inputs beside the text: give decoding.score what the processor "
                "returns, or decoding.score_batch several prompts"
            )
    return readers


def _union(groups: Sequence[Sequence[Reader]]) -> tuple[list[Reader], list[dict[str, tuple[str, tuple[int, ...]]]]]:
    """Readers of several strategies, those of the same tokens and weights only once; for each strategy, by its own
    role, the role in the union and the layers after which it exits early.
    """
    union: dict[tuple[Any, ...], Reader] = {}
    roles: list[dict[str, tuple[str, tuple[int, ...]]]] = []
    for group in groups:
        shared_roles = {}
        for reader in group:
            texts = (None if rows is None else tuple(map(tuple, rows)) for rows in (reader.prefix, reader.prompt))
            way = (reader.degradation, reader.system, reader.from_last_token)
            key = (id(reader.model), reader.adapter, *texts, *way)
            if key not in union:
                names = {known.role for known in union.values()}
                number = next(n for n in range(1, len(union) + 2) if _numbered(reader.role, n) not in names)
                union[key] = dataclasses.replace(reader, role=_numbered(reader.role, number))
            known = union[key]
            exits = tuple(sorted({*known.exits, *reader.exits}))
            union[key] = dataclasses.replace(known, exits=exits)
            shared_roles[reader.role] = (known.role, reader.exits)
        roles.append(shared_roles)
    return list(union.values()), roles


def _numbered(role: str, number: int) -> str:
    return role if number == 1 else f"{role} {number}"
