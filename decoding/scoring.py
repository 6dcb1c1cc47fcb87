"""Scoring continuations under a strategy, teacher-forced: the prompt is read once, the continuations are branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.adapters import unwrapped
from decoding.contrast_strategy import Contrast, ContrastStrategy
from decoding.errors import InputError, OptionError
from decoding.fused_streams import EXPERT, FusedStreams, Heard, Reader
from decoding.strategy import check_inputs
from decoding.stream import Stream

__all__ = ["score"]

# Logits held at once are kept below this many numbers, so that long continuations of large vocabularies fit.
NUMBERS_AT_ONCE = 2**26
# Continuations share a forward pass as long as they have at most this many tokens together.
TOKENS_AT_ONCE = 512


class _Plain(ContrastStrategy):
    """The model's own probabilities, as a contrast of one."""

    name = "greedy"

    def readers(self, model: Any, rows: int) -> list[Reader]:
        return [Reader(EXPERT)]

    def contrast(self, heard: Any) -> Contrast:
        final = heard[EXPERT].final
        return Contrast(final, final, None)


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
    model = unwrapped(model)
    strategy = _Plain() if strategy is None else strategy
    if not isinstance(strategy, ContrastStrategy):
        name = getattr(strategy, "name", repr(strategy))
        raise OptionError(
            f"strategy={name}: it ranks candidates by looking ahead and gives no score to a given token; accepted are "
            "ContrastiveDecoding, DoLa, ContextAware, LOL, or None for the model's own log-probabilities"
        )
    strategy = strategy.with_tokenizer(tokenizer)
    strategy.check(model)
    before, after = tokens_of(prompt, continuations, tokenizer)
    _check_room(model, before, after)
    ids = torch.tensor([before], device=model.device)
    check_inputs(model, ids, {})
    inputs, kwargs, config = Stream.prepare(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    config.max_length = len(before) + max(map(len, after))
    streams = FusedStreams(
        model, strategy.readers(model, 1), inputs, kwargs, config,
        restorable=True, final_norm=strategy.exit_norm, fuse=strategy.fuse,
    )  # fmt: skip
    scores: list[Tensor] = []
    try:
        for group in _groups(after):
            scores += _score_group(strategy, streams, group, normalized, floor)
    finally:
        streams.release()
    return scores


def tokens_of(
    prompt: str | Sequence[int] | Tensor, continuations: Sequence[str | Sequence[int] | Tensor], tokenizer: Any
) -> tuple[list[int], list[list[int]]]:
    """Token ids of prompt and continuations.

    A continuation's tokens are those that its text adds to the prompt's; where the tokenizer joins the two across the
    border, it is taken by itself.

    Raises:
        OptionError: text without a tokenizer.
        InputError: nothing to read or to score.
    """
    given = [prompt, *continuations]
    if tokenizer is None and any(isinstance(each, str) for each in given):
        raise OptionError("prompt and continuations as text need tokenizer=...; or give token ids")
    if isinstance(prompt, str):
        before = list(tokenizer(prompt)["input_ids"])
        ends = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id}
        while before and before[-1] in ends:
            before.pop()  # an end token that the tokenizer adds
    else:
        before = _ids(prompt)
    if not before:
        raise InputError("the prompt is empty: give at least one token")
    if not continuations:
        raise InputError("no continuations: give at least one")
    after = []
    for index, each in enumerate(continuations):
        if isinstance(each, str):
            text = _ids(tokenizer(each, add_special_tokens=False)["input_ids"])
            if isinstance(prompt, str):
                whole = _ids(tokenizer(prompt + each)["input_ids"])
                bare = whole[: len(whole) - _ends(whole, tokenizer)]
                text = bare[len(before) :] if bare[: len(before)] == before else text
        else:
            text = _ids(each)
        if not text:
            raise InputError(f"continuation {index} is empty: give at least one token")
        after.append(text)
    return before, after


def _ends(ids: list[int], tokenizer: Any) -> int:
    """How many end tokens the tokenizer has put behind a text."""
    ends = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id}
    return next((i for i, token in enumerate(reversed(ids)) if token not in ends), len(ids))


def _ids(given: Any) -> list[int]:
    return given.flatten().tolist() if isinstance(given, Tensor) else list(given)


def _check_room(model: Any, before: list[int], after: list[list[int]]) -> None:
    from decoding.fused_streams import context_of

    context = context_of(model)
    for index, each in enumerate(after):
        if context is not None and len(before) + len(each) > context:
            raise InputError(
                f"continuation {index}: prompt and continuation have {len(before)} + {len(each)} tokens, which is more "
                f"than the model's context of {context}"
            )


def _groups(continuations: list[list[int]]) -> list[list[list[int]]]:
    """Runs of continuations that one forward pass reads."""
    groups: list[list[list[int]]] = []
    for each in continuations:
        width = max([len(each), *(len(other) for other in groups[-1])]) if groups else len(each)
        if groups and (len(groups[-1]) + 1) * width <= TOKENS_AT_ONCE:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _score_group(
    strategy: ContrastStrategy, streams: FusedStreams, group: list[list[int]], normalized: bool, floor: float
) -> list[Tensor]:
    width = max(map(len, group))
    # Shorter ones are filled up behind their end, which nothing before it sees.
    tokens = torch.tensor([[each + each[-1:] * (width - len(each)) for each in group]])
    readings = streams.branch(tokens)
    vocab = streams.model.config.get_text_config(decoder=True).vocab_size
    planes = sum(1 + len(reader.exits) for part in streams.parts for reader in part.readers)
    at_once = max(1, NUMBERS_AT_ONCE // (vocab * planes))
    scores = []
    for branch, each in enumerate(group):
        pieces = []
        for start in range(0, len(each), at_once):
            end = min(start + at_once, len(each))
            heard: dict[str, Heard] = streams.heard_along(readings, branch, start, end)
            contrast = strategy.contrast(heard)
            given = contrast.masked
            if normalized:
                given = given.log_softmax(-1)
            chosen = torch.tensor(each[start:end], device=given.device)[None, :, None]
            pieces.append(given.gather(-1, chosen)[0, :, 0].clamp_min(floor))
        scores.append(torch.cat(pieces).cpu())
    for part in streams.parts:
        part.stream.drop()
    return scores
