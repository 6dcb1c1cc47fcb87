"""Whole texts scored by a configuration, for the evaluations that compare likelihoods."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decoding.contrast_strategy import ContrastStrategy
from decoding.errors import DecodingWarning, InputError
from decoding.evals.configurations import Configuration
from decoding.evals.results import Results
from decoding.fused_streams import context_of
from decoding.registry import Greedy
from decoding.scoring import score, tokens_of

__all__ = ["Likelihood", "likelihoods", "note_cuts"]


@dataclass(frozen=True)
class Likelihood:
    """The log-score of a text.

    Attributes:
        total: of its tokens, summed; nats.
        tokens: how many it has.
    """

    total: float
    tokens: int

    @property
    def per_token(self) -> float:
        """The mean over its tokens."""
        return self.total / self.tokens


def likelihoods(
    configuration: Configuration,
    model: Any,
    tokenizer: Any,
    prompt: str,
    continuations: Sequence[str],
    *,
    normalized: bool = True,
) -> tuple[list[Likelihood], int]:
    """Log-scores of continuations of one prompt, which is read once.

    Args:
        configuration: whose strategy scores; "greedy" is the model's own probability.
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        prompt: where it does not fit into the model's context with the longest continuation, it loses tokens at its
            beginning, but for a bos token.
        continuations: with their leading space.
        normalized: as in :func:`decoding.score`.

    Returns:
        One a continuation, and how many tokens of the prompt were left out.

    Raises:
        InputError: a continuation that leaves no room for any of the prompt.
        OptionError: a strategy that cannot score.
    """
    how = configuration.choice.how
    before, after = tokens_of(prompt, continuations, tokenizer)
    kept = _cut(before, max(map(len, after)), _room(model, how), tokenizer.bos_token_id)
    scores = score(model, kept, after, None if isinstance(how, Greedy) else how, normalized)
    made = [Likelihood(each.double().sum().item(), len(each)) for each in scores]
    return made, len(before) - len(kept)


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


def _room(model: Any, how: Any) -> int | None:
    """How many tokens of prompt and continuation fit beside what a strategy puts before them."""
    context = context_of(model)
    if context is None or not isinstance(how, ContrastStrategy):
        return context
    return context - max(len(reader.prefix[0]) if reader.prefix else 0 for reader in how.readers(model, 1))


def _cut(prompt: list[int], longest: int, room: int | None, bos: int | None) -> list[int]:
    if room is None or len(prompt) + longest <= room:
        return prompt
    start = prompt[:1] if prompt[0] == bos else []
    left = room - longest - len(start)
    if left < 1:
        raise InputError(f"a text of {longest} tokens leaves no room for its prompt in a context of {room}")
    return start + prompt[-left:]
