"""Scoring continuations of a prompt under a strategy, teacher-forced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.errors import InputError
from decoding.models.wrappers import text_tokenizer, unwrapped
from decoding.parameters import require_flag
from decoding.scoring.scorer import Scorer
from decoding.scoring.token_ids import as_continuations, text_needs_tokenizer, token_ids
from decoding.scoring.with_inputs import encoder_inputs, has_more_than_text, score_batch
from decoding.strategies.given import GivenStrategy

__all__ = ["score", "tokens_of"]

Text = str | Sequence[int] | Tensor | Mapping[str, Any]
"""Text, token ids, or what a tokenizer returns for one text."""


@torch.no_grad()
def score(
    model: Any,
    prompt: Text,
    continuations: str | Sequence[Text] | Tensor | Mapping[str, Any],
    strategy: GivenStrategy | None = None,
    normalized: bool = True,
    *,
    tokenizer: Any = None,
    floor: float = -1000.0,
) -> list[Tensor]:
    r"""Per-token log-scores of continuations of one prompt under a strategy, teacher-forced.

    For many prompts that begin alike, or several strategies, :class:`Scorer` does the same with fewer forward passes;
    for several prompts with images or sound, or of an encoder-decoder, :func:`score_batch`.

    Args:
        model: a generating transformers model.
        prompt: text, (length,) token ids, or what a tokenizer returns for one text; what a processor returns for a text
            with images or sound. Of an encoder-decoder, what its encoder reads.
        continuations: each text or (n,) token ids, n >= 1; text goes on where the prompt ends, with its own leading
            space. One text alone is one continuation, and so is one list of token ids; of what a tokenizer returns
            each row is one.
        strategy: a scorable strategy (``ContrastiveDecoding``, ``DoLa``, ``ContextAware``, ``LOL``), in any form that
            :func:`decoding.generate` takes; None, or ``"greedy"``, for the model's own log-probabilities. With an
            image, sound or an encoder's text ``ImageContrast``, ``AudioContrast`` and ``SourceContrast`` too.
        normalized: True returns the log-softmax of the strategy's scores over its plausible tokens. False returns the
            scores as they are: differences of log-probabilities whose exponentials have no fixed sum, which the
            TruthfulQA figures of DoLa and of induced contrastive decoding use.
        tokenizer: for text.
        floor: the score of a token that is not plausible (DoLa's code has -1000). ``alpha=0`` in the strategy makes
            every token plausible.

    Returns:
        One (n,) float32 tensor on the CPU for each continuation.

    Raises:
        OptionError: a strategy that cannot score, or text without a tokenizer.
        InputError: an empty prompt or continuation, or one past the model's context.

    Example:
        >>> scores = decoding.score(model, "Q: ...\nA:", [" Yes.", " No."], DoLa("high"), tokenizer=tokenizer)
        >>> [token_scores.sum().item() for token_scores in scores]
    """
    require_flag("normalized", normalized)
    if unwrapped(model).config.is_encoder_decoder or has_more_than_text(model, prompt):
        inputs = encoder_inputs(prompt, tokenizer)
        answers = [as_continuations(continuations)]
        return score_batch(model, inputs, answers, strategy, normalized, tokenizer=tokenizer, floor=floor)[0]
    prompt_ids, continuation_ids = tokens_of(prompt, continuations, tokenizer)
    with Scorer(model, prompt_ids, [strategy], tokenizer=tokenizer, floor=floor) as scorer:
        all_scores = scorer.score([([], continuation_ids)])[0][0]
    return [scores.normalized if normalized else scores.raw for scores in all_scores]


def tokens_of(
    prompt: Text,
    continuations: str | Sequence[Text] | Tensor | Mapping[str, Any],
    tokenizer: Any,
    special_tokens: bool = True,
) -> tuple[list[int], list[list[int]]]:
    """Token ids of prompt and continuations.

    A continuation's tokens are those that its text adds to the prompt's; where the tokenizer joins the two across the
    border, it is tokenized alone.

    Args:
        prompt: text or token ids.
        continuations: each text or token ids.
        tokenizer: for text.
        special_tokens: whether the tokenizer adds special tokens to a prompt (a chat template has them in its text).

    Raises:
        OptionError: text without a tokenizer.
        InputError: nothing to read or to score.
    """
    tokenizer = text_tokenizer(tokenizer, required=False)
    continuations = as_continuations(continuations)
    if tokenizer is None and any(isinstance(text, str) for text in (prompt, *continuations)):
        raise text_needs_tokenizer()
    if not continuations:
        raise InputError("no continuations: give at least one")
    texts = [continuation for continuation in continuations if isinstance(continuation, str)]
    whole_texts: list[list[int]] = []
    if isinstance(prompt, str):
        # One call for all: a fast tokenizer encodes them in parallel.
        encoded = tokenizer([prompt, *(prompt + text for text in texts)], add_special_tokens=special_tokens)
        prompt_ids, *whole_texts = [_without_ends(ids, tokenizer) for ids in encoded["input_ids"]]
    else:
        prompt_ids = token_ids(prompt, "prompt")
    if not prompt_ids:
        raise InputError("the prompt is empty: give at least one token")
    length = len(prompt_ids)
    added = [ids[length:] if ids[:length] == prompt_ids else None for ids in whole_texts]
    from_text = iter(added or [None] * len(texts))
    continuation_ids = []
    for index, continuation in enumerate(continuations):
        if isinstance(continuation, str):
            ids = next(from_text)
            ids = token_ids(tokenizer(continuation, add_special_tokens=False)["input_ids"]) if ids is None else ids
        else:
            ids = token_ids(continuation, f"continuation {index}")
        if not ids:
            raise InputError(f"continuation {index} is empty: give at least one token")
        continuation_ids.append(ids)
    return prompt_ids, continuation_ids


def _without_ends(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The tokens of a text without the end tokens that the tokenizer has added."""
    ends = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id}
    kept = list(ids)
    while kept and kept[-1] in ends:
        kept.pop()
    return kept
