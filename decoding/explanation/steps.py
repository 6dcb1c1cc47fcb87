"""The steps of an explanation, from the scores of a session and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.explanation.records import Candidate, Step
from decoding.generation.roles import EXPERT
from decoding.generation.score_parts import ScoreParts
from decoding.kernels.contrast import divergence

__all__ = ["step_records"]

LARGEST = torch.finfo(torch.float32).max  # stands for +inf, which JSON does not have

TextAt = Callable[[int, int], str | None]
"""From a row and a token to the text that the token would add at the step."""


def step_records(
    parts: ScoreParts,
    greedy: Tensor,
    tokens: Tensor,
    rows: Sequence[int],
    position: int,
    text_at: TextAt,
    *,
    alternatives: int,
    temperature: float,
) -> list[Step]:
    """The records of one step.

    Args:
        parts: of every row.
        greedy: (batch,) the tokens of greedy search.
        tokens: (batch,) those that were chosen.
        rows: that are wanted.
        position: of the step.
        text_at: what a token would add.
        alternatives: how many tokens with the highest scores, and how many most probable ones, are candidates at least.
        temperature: that the scores are divided by where tokens are drawn.

    Returns:
        One for each of ``rows``.
    """
    scores = parts.scores.float()
    vocab = scores.shape[1]
    logits = {name: _of_vocabulary(reader, vocab, scores.device) for name, reader in parts.readers.items()}
    log_probs = {name: reader.log_softmax(-1) for name, reader in logits.items()}
    n = min(alternatives, vocab)
    tokens = tokens.to(scores.device).clamp(max=vocab - 1)  # the padding of a finished row may be no token of the model
    highest = scores.topk(n)
    allowed = torch.where(highest.values > -torch.inf, highest.indices, tokens[:, None])
    best = [tokens[:, None], greedy[:, None], allowed, log_probs[EXPERT].topk(n).indices]
    best += [reader.argmax(-1, keepdim=True) for reader in log_probs.values()]
    shown = torch.cat([ids.to(scores.device) for ids in best], dim=1)  # (batch, shown), some of them twice

    def values(of_vocabulary: Tensor) -> list[list[Any]]:
        found: list[list[Any]] = of_vocabulary.gather(1, shown).tolist()
        return found

    ids = shown.tolist()
    by_reader = {name: values(reader) for name, reader in log_probs.items()}
    by_score, probabilities = values(scores), values(_distribution(scores / temperature))
    by_term = {name: values(term) for name, term in parts.terms.items()}
    repeats = None if parts.repeats is None else values(parts.repeats)
    choices = (scores > -torch.inf).sum(-1).tolist()
    divergences = {
        name: divergence(logits[EXPERT], reader).tolist() for name, reader in logits.items() if name != EXPERT
    }
    weights, settings = _lists(parts.weights), _lists(parts.settings)

    def candidate(row: int, column: int) -> Candidate:
        score = by_score[row][column]
        position = -1 if repeats is None else repeats[row][column]
        terms = ((name, found[row][column]) for name, found in by_term.items())
        return Candidate(
            ids[row][column],
            text_at(row, ids[row][column]),
            {name: _finite(found[row][column]) for name, found in by_reader.items()},
            None if score == -math.inf else _finite(score),
            probabilities[row][column],
            {name: value for name, value in terms if math.isfinite(value)},
            None if position < 0 else position,
        )

    def record(row: int) -> Step:
        columns = {token: column for column, token in reversed(list(enumerate(ids[row])))}
        found = {token: candidate(row, column) for token, column in columns.items()}
        chosen = found.pop(ids[row][0])
        rejected = sorted(found.values(), key=_strength, reverse=True)
        return Step(
            position, chosen, tuple(rejected), ids[row][1], choices[row],
            {name: found[row] for name, found in weights.items()},
            {name: found[row] for name, found in settings.items()},
            {name: found[row] for name, found in divergences.items()},
        )  # fmt: skip

    return [record(row) for row in rows]


def _strength(candidate: Candidate) -> tuple[float, float, int]:
    score = -math.inf if candidate.score is None else candidate.score
    return score, candidate.probability_of(EXPERT), -candidate.token


def _of_vocabulary(logits: Tensor, vocab: int, device: torch.device) -> Tensor:
    """(batch, vocab) float32 logits of a reader, which may have fewer tokens than the expert, or more."""
    logits = logits.to(device, torch.float32)[:, :vocab]
    return torch.nn.functional.pad(logits, (0, vocab - logits.shape[1]), value=-torch.inf)


def _distribution(scores: Tensor) -> Tensor:
    """(batch, vocab) the softmax of scores, shared by the tokens at +inf where there are such; 0 in a row of -inf."""
    infinite = scores == torch.inf
    scores = torch.where(infinite.any(-1, keepdim=True), torch.where(infinite, 0.0, -torch.inf), scores)
    return scores.softmax(-1).nan_to_num(nan=0.0)


def _finite(value: float) -> float | None:
    """A number for JSON; None for -inf."""
    return None if value == -math.inf else min(value, LARGEST)


def _lists(values: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    return {name: (found + 0).tolist() for name, found in values.items()}  # 0, not -0
