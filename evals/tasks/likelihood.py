"""Whole texts scored by a configuration, for the evaluations that compare likelihoods."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decoding.errors import DecodingWarning, InputError, OptionError
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.results import Results
from decoding.evals.tasks.truthfulqa.prompts import common_beginning
from decoding.models.inputs import context_of
from decoding.scoring.score import tokens_of
from decoding.scoring.scorer import Scorer
from decoding.scoring.teacher_forcing import longest_text
from decoding.strategies.baselines import Greedy
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.registry import StrategySpec, scorable_strategies

__all__ = ["Likelihood", "likelihoods", "note_cuts", "scoring_strategy", "shortened"]


@dataclass(frozen=True)
class Likelihood:
    """The log-scores of a text, summed over its tokens.

    Attributes:
        normalized: from the log-softmax of the strategy's scores; nats.
        raw: from its scores without the log-softmax; the same where there is no strategy.
        tokens: its number of tokens.
    """

    normalized: float
    raw: float
    tokens: int

    def figures(self) -> dict[str, float]:
        """The figures that are compared: each sum, and each mean over the tokens, which does not favour short texts."""
        return {
            "": self.normalized,
            "/token": self.normalized / self.tokens,
            " raw": self.raw,
            "/token raw": self.raw / self.tokens,
        }


def likelihoods(
    configurations: Sequence[Configuration],
    model: Any,
    tokenizer: Any,
    prompt: str,
    continuations: Sequence[str],
    kept_end: str = "",
    *,
    special_tokens: bool = True,
    cut: bool = True,
) -> list[tuple[list[Likelihood], int]]:
    """Log-scores of continuations of one prompt, which is read once for all configurations.

    Args:
        configurations: of the strategies that score.
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        prompt: where it does not fit into a strategy's context with the longest continuation, tokens at its beginning
            are left out, but for a bos token.
        continuations: with their leading space.
        kept_end: the end of the prompt, where the tokens before that are to be left out and not those at its beginning.
        special_tokens: whether the tokenizer adds special tokens to the prompt; a chat template has them in its text.
        cut: whether a prompt that does not fit loses tokens.

    Returns:
        For each configuration one :class:`Likelihood` a continuation, and the number of tokens left out of the prompt.

    Raises:
        InputError: a continuation as long as the context; without ``cut`` a prompt that does not fit.
        OptionError: a strategy that cannot score.
    """
    strategies = [scoring_strategy(configuration.spec) for configuration in configurations]
    before, after = tokens_of(prompt, continuations, tokenizer, special_tokens)
    longest, text = max(zip(map(len, after), continuations, strict=True))
    capacities = [context_of(model) if strategy is None else longest_text(model, strategy) for strategy in strategies]
    if not cut:
        _check_fit(before, longest, capacities, context_of(model))
    fixed = _length_of_end(before, prompt.removesuffix(kept_end), tokenizer) if kept_end else None
    prompts = [_cut(before, longest, text, capacity, tokenizer.bos_token_id, fixed) for capacity in capacities]
    results: list[Any] = [None] * len(strategies)
    for length in set(map(len, prompts)):  # one length, unless strategies with prompts of their own leave fewer tokens
        same = [i for i, ids in enumerate(prompts) if len(ids) == length]
        with Scorer(model, prompts[same[0]], [strategies[i] for i in same]) as scorer:
            (by_strategy,) = scorer.score([((), after)])
        for i, scores in zip(same, by_strategy, strict=True):
            sums = [
                Likelihood(score.normalized.double().sum().item(), score.raw.double().sum().item(), len(score.raw))
                for score in scores
            ]
            results[i] = (sums, len(before) - length)
    return results


def note_cuts(results: Results | None, lost: str = "their beginning") -> None:
    """Warn of prompts that lost a part, from a metric ``cut`` of the documents: 1 where one did."""
    if results is None:
        return
    documents = results["counts"]["evaluated"]
    for entry in results["configurations"]:
        cut = round(entry["metrics"]["cut"]["value"] * documents)
        if cut:
            warnings.warn(
                f"{entry['label']}: {cut} of {documents} prompts were too long for the model's context and lost {lost}",
                DecodingWarning,
                stacklevel=2,
            )


def scoring_strategy(spec: StrategySpec) -> ContrastStrategy | None:
    """The strategy that scores texts; None for the model's own log-probabilities.

    Raises:
        OptionError: it gives no score to a given token.
    """
    if isinstance(spec.strategy, Greedy):
        return None
    if isinstance(spec.strategy, ContrastStrategy) and spec.strategy.scorable:
        return spec.strategy
    raise OptionError(
        f"--strategy {spec.name}: gives no score to a given answer; must be {' or '.join(scorable_strategies())}"
    )


def shortened(text: str, limit: int = 40) -> str:
    """A text in one line, cut to ``limit`` characters, as messages show it."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _check_fit(prompt: list[int], longest: int, capacities: Sequence[int | None], context: int | None) -> None:
    """Raise InputError where a prompt, the longest continuation and the texts of a strategy do not fit."""
    least = min((capacity for capacity in capacities if capacity is not None), default=None)
    if least is not None and len(prompt) + longest > least:
        raise InputError(
            f"its prompt has {len(prompt)} tokens, an answer {longest} and the texts that a strategy puts before it "
            f"{(context or least) - least}: more than the model's context of {context or least}"
        )


def _length_of_end(prompt: list[int], beginning: str, tokenizer: Any) -> int:
    """The number of a prompt's tokens that hold what follows its beginning, or a part of both."""
    return len(prompt) - len(common_beginning([prompt, list(tokenizer(beginning)["input_ids"])]))


def _cut(
    prompt: list[int], longest: int, text: str, capacity: int | None, bos: int | None, end: int | None
) -> list[int]:
    """The prompt without as many tokens as are too many with the longest text.

    They are left out after a bos token, or before the last ``end`` tokens.
    """
    excess = 0 if capacity is None else len(prompt) + longest - capacity
    if excess <= 0:
        return prompt
    first = len(prompt[:1]) if prompt[0] == bos else 0
    start = first if end is None else len(prompt) - end - excess
    if start < first or start + excess >= len(prompt):
        raise InputError(
            f"the text {shortened(text)!r} has {longest} tokens: too long for a context of {capacity} with a prompt"
        )
    return prompt[:start] + prompt[start + excess :]
