"""Whole texts scored by a configuration, for the evaluations that compare likelihoods."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decoding.errors import DecodingWarning, InputError, OptionError
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.results import Results
from decoding.models.inputs import context_of
from decoding.scoring.score import tokens_of
from decoding.scoring.scorer import Scorer
from decoding.strategies.baselines import Greedy
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.registry import StrategySpec, scorable_strategies

__all__ = ["Likelihood", "likelihoods", "note_cuts", "scoring_strategy", "shortened"]


@dataclass(frozen=True)
class Likelihood:
    """The log-scores of a text, summed over its tokens.

    Attributes:
        normalized: from the log-softmax of the strategy's scores; nats.
        raw: from its scores as they are; the same where there is no strategy.
        tokens: how many tokens it has.
    """

    normalized: float
    raw: float
    tokens: int

    def figures(self) -> dict[str, float]:
        """What is compared: each sum, and each mean over the tokens, which does not favour short texts."""
        return {
            "": self.normalized,
            "/token": self.normalized / self.tokens,
            " raw": self.raw,
            "/token raw": self.raw / self.tokens,
        }


def likelihoods(
    configurations: Sequence[Configuration], model: Any, tokenizer: Any, prompt: str, continuations: Sequence[str]
) -> list[tuple[list[Likelihood], int]]:
    """Log-scores of continuations of one prompt, which is read once for all configurations.

    Args:
        configurations: whose strategies score.
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        prompt: where it does not fit into a strategy's context with the longest continuation, it loses tokens at its
            beginning, but for a bos token.
        continuations: with their leading space.

    Returns:
        For each configuration one :class:`Likelihood` a continuation, and how many tokens the prompt lost.

    Raises:
        InputError: a continuation that leaves no room for any of the prompt.
        OptionError: a strategy that cannot score.
    """
    strategies = [scoring_strategy(each.spec) for each in configurations]
    before, after = tokens_of(prompt, continuations, tokenizer)
    longest, text = max(zip(map(len, after), continuations, strict=True))
    kept = [_cut(before, longest, text, _room(model, each), tokenizer.bos_token_id) for each in strategies]
    found: list[Any] = [None] * len(strategies)
    for length in set(map(len, kept)):  # one, but where strategies with texts of their own leave less room
        own = [i for i, each in enumerate(kept) if len(each) == length]
        with Scorer(model, kept[own[0]], [strategies[i] for i in own]) as scorer:
            (by_strategy,) = scorer.score([((), after)])
        for i, scores in zip(own, by_strategy, strict=True):
            sums = [
                Likelihood(each.normalized.double().sum().item(), each.raw.double().sum().item(), len(each.raw))
                for each in scores
            ]
            found[i] = (sums, len(before) - length)
    return found


def note_cuts(results: Results | None) -> None:
    """Say how many prompts lost their beginning: results whose documents have a metric ``cut``, 1 where one did."""
    if results is None:
        return
    documents = results["counts"]["evaluated"]
    for entry in results["configurations"]:
        cut = round(entry["metrics"]["cut"]["value"] * documents)
        if cut:
            warnings.warn(
                f"{entry['label']}: {cut} of {documents} prompts were too long for the model's context and lost their "
                "beginning",
                DecodingWarning,
                stacklevel=2,
            )


def scoring_strategy(choice: StrategySpec) -> ContrastStrategy | None:
    """What scores texts under a choice of the registry; None for the model's own log-probabilities.

    Raises:
        OptionError: it gives no score to a given token.
    """
    if isinstance(choice.strategy, Greedy):
        return None
    if isinstance(choice.strategy, ContrastStrategy) and choice.strategy.scorable:
        return choice.strategy
    raise OptionError(
        f"--strategy {choice.name}: gives no score to a given answer; must be {' or '.join(scorable_strategies())}"
    )


def shortened(text: str, limit: int = 40) -> str:
    """A text in one line, cut to ``limit`` characters, as messages show it."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _room(model: Any, strategy: ContrastStrategy | None) -> int | None:
    """How many tokens of prompt and continuation fit beside what a strategy puts before them."""
    readers = strategy.readers(model, 1) if strategy is not None else []
    rooms = [
        context - (len(each.prefix[0]) if each.prefix else 0)
        for each in [Reader(EXPERT), *readers]
        if (context := context_of(each.model or model)) is not None
    ]
    return min(rooms, default=None)


def _cut(prompt: list[int], longest: int, text: str, room: int | None, bos: int | None) -> list[int]:
    """The prompt, or what of its end fits beside the longest text."""
    if room is None or len(prompt) + longest <= room:
        return prompt
    start = prompt[:1] if prompt[0] == bos else []
    left = room - longest - len(start)
    if left < 1:
        raise InputError(
            f"the text {shortened(text)!r} has {longest} tokens: no room for its prompt in a context of {room}"
        )
    return start + prompt[-left:]
