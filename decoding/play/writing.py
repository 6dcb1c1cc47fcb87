"""Writes one text: streams its tokens, stops when it is told to, and keeps given tokens."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from decoding.api import generate_with
from decoding.errors import DecodingWarning, InputError, OptionError
from decoding.explanation.explain import explain
from decoding.explanation.records import Explanation
from decoding.models.inputs import context_of
from decoding.models.wrappers import text_tokenizer
from decoding.play.requests import TextRequest, Written
from decoding.strategies.effective_config import decoded_with
from decoding.strategies.generation_options import NO_OPTIONS
from decoding.strategies.registry import NOT_EXPLAINED
from decoding.text import encoded, new_text, new_token_budget, until_end

__all__ = ["counted", "write"]

INTERVAL = 0.04  # seconds at least between two states of a text that are told
EXPLAINED_INTERVAL = 0.2  # likewise, of its explanation

UNTIMED = 8  # tokens of a text that its rate leaves out, at most: a model that was just loaded is slower at them

Tell = Callable[[str, str], None]
"""Is told the new text so far, and what goes on."""


def write(model: Any, tokenizer: Any, request: TextRequest, stop: Event, gone: Event, tell: Tell) -> Written:
    """Write a text, and explain it.

    Strategies are what they are called: penalties and the like of the model's own generation config are off, as in
    ``decoding compare``.

    Args:
        model: a generating transformers model; nothing else may use it meanwhile.
        tokenizer: its tokenizer.
        request: what to write.
        stop: ends the text after the next token.
        gone: nobody reads the text: it is not explained.
        tell: is told of the text as it grows, and then of its explanation.

    Raises:
        DecodingError: the request does not fit the model, or memory ran out.
    """
    spec = request.spec.with_tokenizer(tokenizer)
    _check_request(model, tokenizer, request)
    inputs = encoded(model, tokenizer, request.prompt, request.chat)
    prompt_length = inputs["input_ids"].shape[1]
    context = context_of(model)
    read = 1 if model.config.is_encoder_decoder else prompt_length  # by the decoder, before its first new token
    left = request.max_new_tokens if context is None else context - read
    budget = new_token_budget(model, prompt_length, min(request.max_new_tokens, max(left, 1)))
    is_streamed = spec.name not in NOT_EXPLAINED  # beam search knows its text only at the end
    stream = _Stream(tokenizer, len(request.kept), tell) if is_streamed else None
    forced = [_KeptTokens(request.start, request.kept)] if request.kept else []
    if spec.is_stochastic:
        torch.manual_seed(request.seed)
    with decoded_with(model, NO_OPTIONS):
        (sequence,) = generate_with(
            spec, model, **inputs, max_new_tokens=budget, streamer=stream, tokenizer=tokenizer,
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]), logits_processor=LogitsProcessorList(forced),
        ).cpu()  # fmt: skip
        text, new_tokens = new_text(model, tokenizer, sequence, prompt_length)
        start = len(until_end(sequence, model)) - new_tokens if model.config.is_encoder_decoder else prompt_length
        row = sequence[: start + new_tokens]
        stopped = stop.is_set() and new_tokens < budget  # now: a text that is being explained is whole
        explanation = None
        if is_streamed and new_tokens and not gone.is_set():
            tell_progress = _explaining(gone, tell, text, start, new_tokens)
            with contextlib.suppress(_GoneError):
                explanation = _explained(model, tokenizer, request, row, budget, inputs, tell_progress)
    rate = None if stream is None else stream.tokens_per_second
    return Written(request, text, tuple(row.tolist()), start, explanation, rate, stopped)


def counted(tokens: int) -> str:
    """A number of tokens in words."""
    return f"{tokens} token{'s' if tokens != 1 else ''}"


def _explained(
    model: Any,
    tokenizer: Any,
    request: TextRequest,
    row: Tensor,
    budget: int,
    inputs: dict[str, Any],
    progress: Callable[[int], None],
) -> Explanation:
    with warnings.catch_warnings():
        if request.kept:  # a token that a visitor chose may be one that the strategy excludes
            warnings.simplefilter("ignore", DecodingWarning)
        return explain(
            model, row[None], request.spec, tokenizer=tokenizer, max_new_tokens=budget, progress=progress, **inputs
        )[0]


class _GoneError(Exception):
    """Ends an explanation that nobody reads."""


def _explaining(gone: Event, tell: Tell, text: str, start: int, new_tokens: int) -> Callable[[int], None]:
    """What is told of an explanation as it goes on, and what ends it.

    Args:
        gone: ends it before its next token.
        tell: is told how many tokens are explained.
        text: that is explained.
        start: the position of its first token.
        new_tokens: it has so many.
    """
    told = -math.inf

    def progress(position: int) -> None:
        nonlocal told
        if gone.is_set():
            raise _GoneError
        if (now := time.perf_counter()) - told >= EXPLAINED_INTERVAL:
            told = now
            tell(text, f"explaining: {position - start} of {counted(new_tokens)}")

    return progress


def _check_request(model: Any, tokenizer: Any, request: TextRequest) -> None:
    """Refuse what a page has no control for, in the page's words.

    Raises:
        InputError: the model reads images or sound alone.
        OptionError: a chat without a chat template, or a strategy that replaces a target language that is not set.
    """
    if model.config.is_encoder_decoder and model.main_input_name != "input_ids":
        raise InputError(f"{request.model}: reads {model.main_input_name} and no text; choose a model of text")
    sets_language = model.generation_config.forced_bos_token_id is not None
    if request.chat and not text_tokenizer(tokenizer).chat_template:
        raise OptionError(f"chat: {request.model} has no chat template; leave Chat unticked")
    if getattr(request.spec.strategy, "replaces_language", False) and not sets_language:
        raise OptionError(
            f"language: {request.spec.name} replaces the target language, and {request.model} sets none here; leave "
            "language empty"
        )


class _Stream:
    """A streamer of transformers that tells the text of the tokens so far."""

    def __init__(self, tokenizer: Any, kept: int, tell: Tell) -> None:
        self._tokenizer = tokenizer
        self._kept = kept
        self._tell = tell
        self._tokens: list[int] = []
        self._prompt: list[int] | None = None
        self._told = 0.0
        self._times: list[float] = []  # of the tokens that were not given

    def put(self, tokens: Tensor) -> None:
        """Take the prompt, at first, and then each token."""
        if self._prompt is None:
            self._prompt = tokens.flatten().tolist()
            return
        now = time.perf_counter()
        self._tokens += tokens.flatten().tolist()
        if len(self._tokens) > self._kept:
            self._times.append(now)
        if now - self._told >= INTERVAL:
            self._told = now
            before = self._decoded(self._prompt)
            text = self._decoded([*self._prompt, *self._tokens])
            new = text[len(before) :] if text.startswith(before) else self._decoded(self._tokens)
            self._tell(new.rstrip("\ufffd"), counted(len(self._tokens)))

    def end(self) -> None:
        """Do nothing: the text is told as a whole."""

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first ones; None where there are fewer than two."""
        if len(self._times) < 2:
            return None
        timed = self._times[min(UNTIMED, (len(self._times) - 1) // 2) :]
        return (len(timed) - 1) / max(timed[-1] - timed[0], 1e-9)

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class _Stop(StoppingCriteria):
    """Ends every row once an event is set."""

    def __init__(self, stop: Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """True of every row, (batch,), once the event is set."""
        return torch.full((len(input_ids),), self._stop.is_set(), dtype=torch.bool, device=input_ids.device)


class _KeptTokens(LogitsProcessor):
    """Leaves the given tokens alone at the first positions.

    So each is chosen as the strategy would choose it, its history and its random draws included: a text that is kept up
    to the token that was chosen goes on as it did.
    """

    def __init__(self, start: int, kept: tuple[int, ...]) -> None:
        self._start = start
        self._kept = kept

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (batch, vocab) of which the given token's are left, where there is one at this position."""
        step = input_ids.shape[1] - self._start
        if not 0 <= step < len(self._kept):
            return scores
        alone = torch.full_like(scores, -torch.inf)
        alone[:, self._kept[step]] = scores[:, self._kept[step]].nan_to_num(neginf=0.0)
        return alone
