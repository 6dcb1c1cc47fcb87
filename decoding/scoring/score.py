"""Scoring continuations of a prompt under a strategy, teacher-forced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.errors import InputError, OptionError
from decoding.scoring.scorer import Scorer

__all__ = ["score", "tokens_of"]


@torch.no_grad()
def score(
    model: Any,
    prompt: str | Sequence[int] | Tensor,
    continuations: Sequence[str | Sequence[int] | Tensor],
    strategy: Any = None,
    normalized: bool = True,
    *,
    tokenizer: Any = None,
    floor: float = -1000.0,
) -> list[Tensor]:
    r"""Per-token log-scores of continuations of one prompt under a strategy, teacher-forced.

    For many prompts that begin alike, or several strategies, :class:`Scorer` does the same with less reading.

    Args:
        model: a decoder-only transformers model.
        prompt: text, or (length,) token ids.
        continuations: each text or (n,) token ids, n >= 1; text goes on where the prompt ends, with its own leading
            space.
        strategy: a contrast strategy (``ContrastiveDecoding``, ``DoLa``, ``ContextAware``, ``LOL``); None for the
            model's own log-probabilities.
        normalized: True gives the log-softmax of the strategy's scores over its plausible tokens. False gives the
            scores as they are: differences of log-probabilities that need not sum to anything, which the TruthfulQA
            figures of DoLa and of induced contrastive decoding rest on.
        tokenizer: for text.
        floor: the score of a token that is not plausible (DoLa's code has -1000). ``alpha=0`` in the strategy calls
            every token plausible.

    Returns:
        One (n,) float32 tensor on the CPU for each continuation.

    Raises:
        OptionError: a strategy that cannot score, or text without a tokenizer.
        InputError: an empty prompt or continuation, or one past the model's context.

    Example:
        >>> scores = decoding.score(model, "Q: ...\nA:", [" Yes.", " No."], DoLa("high"), tokenizer=tokenizer)
        >>> [each.sum().item() for each in scores]
    """
    before, after = tokens_of(prompt, continuations, tokenizer)
    with Scorer(model, before, [strategy], tokenizer=tokenizer, floor=floor) as scorer:
        scores = scorer.score([([], after)])[0][0]
    return [each.normalized if normalized else each.raw for each in scores]


def tokens_of(
    prompt: str | Sequence[int] | Tensor,
    continuations: Sequence[str | Sequence[int] | Tensor],
    tokenizer: Any,
    special_tokens: bool = True,
) -> tuple[list[int], list[list[int]]]:
    """Token ids of prompt and continuations.

    A continuation's tokens are those that its text adds to the prompt's; where the tokenizer joins the two across the
    border, it is taken by itself.

    Args:
        prompt: text or token ids.
        continuations: each text or token ids.
        tokenizer: for text.
        special_tokens: whether it adds its own to a prompt (a chat template has them in its text).

    Raises:
        OptionError: text without a tokenizer.
        InputError: nothing to read or to score.
    """
    given = [prompt, *continuations]
    if tokenizer is None and any(isinstance(each, str) for each in given):
        raise OptionError("prompt and continuations as text need tokenizer=...; or give token ids")
    if not continuations:
        raise InputError("no continuations: give at least one")
    texts = [each for each in continuations if isinstance(each, str)]
    whole: list[list[int]] = []
    if isinstance(prompt, str):
        # One call for all: a fast tokenizer reads them side by side.
        encoded = tokenizer([prompt, *(prompt + text for text in texts)], add_special_tokens=special_tokens)
        before, *whole = [_without_ends(ids, tokenizer) for ids in encoded["input_ids"]]
    else:
        before = _ids(prompt)
    if not before:
        raise InputError("the prompt is empty: give at least one token")
    added = [ids[len(before) :] if ids[: len(before)] == before else None for ids in whole]
    from_text = iter(added or [None] * len(texts))
    after = []
    for index, each in enumerate(continuations):
        if isinstance(each, str):
            ids = next(from_text)
            ids = _ids(tokenizer(each, add_special_tokens=False)["input_ids"]) if ids is None else ids
        else:
            ids = _ids(each)
        if not ids:
            raise InputError(f"continuation {index} is empty: give at least one token")
        after.append(ids)
    return before, after


def _without_ends(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The tokens of a text without end tokens that the tokenizer has put behind it."""
    ends = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id}
    kept = list(ids)
    while kept and kept[-1] in ends:
        kept.pop()
    return kept


def _ids(given: Any) -> list[int]:
    return given.flatten().tolist() if isinstance(given, Tensor) else list(given)
