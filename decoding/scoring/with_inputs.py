"""Scores of continuations of prompts with images or sound, or of what an encoder reads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from decoding.errors import InputError
from decoding.kernels.exponentials import log_sum_exp
from decoding.models.devices import input_device
from decoding.models.forward_errors import not_a_number, within_memory
from decoding.models.inputs import check_inputs, context_of, with_named_inputs
from decoding.models.segments import check_one_segment, of_segment
from decoding.models.text_config import vocab_size
from decoding.models.wrappers import text_tokenizer, unwrapped
from decoding.parameters import require_flag
from decoding.scoring.scores import Scores
from decoding.scoring.scoring_strategy import checked_floor, is_plain, scoring_strategy
from decoding.scoring.token_ids import as_continuations, text_needs_tokenizer, token_ids
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.contrast.reader_inputs import TEXT_INPUTS
from decoding.strategies.contrast.session import ContrastSession
from decoding.strategies.given import GivenStrategy
from decoding.stream.prepare import prepare_inputs

__all__ = ["encoder_inputs", "has_more_than_text", "score_batch"]

OF_TEXT = {"input_ids", "token_type_ids", *TEXT_INPUTS}


@torch.no_grad()
def score_batch(
    model: Any,
    inputs: Mapping[str, Any],
    continuations: Sequence[Any],
    strategy: GivenStrategy | None = None,
    normalized: bool = True,
    *,
    tokenizer: Any = None,
    floor: float = -1000.0,
) -> list[list[Tensor]]:
    """Per-token log-scores of continuations of several prompts, perhaps with images, sound or an encoder's text.

    They are the scores with which :func:`decoding.generate` would choose at each token, before processors. Prompts are
    read together, once for each of their continuations, whose tokens are then read one after another as in generation.
    First tokens alone ("yes" and "no") cost no more than the prompts, however many there are.

    For text and decoder-only models, :class:`decoding.Scorer` reads what prompts share once.

    Args:
        model: a generating transformers model.
        inputs: what a processor or a tokenizer returns for the prompts, padded on the left, as for
            :func:`decoding.generate`. An encoder-decoder's are those of its encoder, perhaps with
            ``decoder_input_ids``.
        continuations: of each prompt in order, texts or (n,) token ids, n >= 1, as in :func:`decoding.score`. Of an
            encoder-decoder they are what its decoder writes. Text is tokenized alone, with its own leading space.
        strategy: a contrast, ``ImageContrast``, ``AudioContrast`` and ``SourceContrast`` among them, in any form that
            :func:`decoding.generate` takes; None, or ``"greedy"``, for the model's own log-probabilities.
        normalized: see :func:`decoding.score`.
        tokenizer: for text.
        floor: see :func:`decoding.score`.

    Returns:
        For each prompt, one (n,) float32 tensor on the CPU for each continuation.

    Raises:
        OptionError: a strategy that cannot score, or text without a tokenizer.
        InputError: not one list of continuations for each prompt, an empty one, one past the context, tokens that the
            model does not have, or sound that is longer than the model hears at a time.

    Example:
        >>> inputs = processor(images=images, text=questions, padding=True, return_tensors="pt")
        >>> answers = [[" yes", " no"]] * len(questions)
        >>> scores = decoding.score_batch(model, inputs, answers, ImageContrast(), tokenizer=tokenizer)
    """
    require_flag("normalized", normalized)
    model, tokenizer, floor = unwrapped(model), text_tokenizer(tokenizer, required=False), checked_floor(floor)
    contrast = scoring_strategy(strategy, tokenizer, text_alone=False)
    contrast.check(model)
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs is a {type(inputs).__name__}: must be what a tokenizer or a processor returns")
    _, named = with_named_inputs(inputs, {})
    check_one_segment(model, named, "texts are scored segment by segment; give the frames of one")
    prompts = len(_first_input(model, named))
    if len(continuations) != prompts:
        raise InputError(
            f"continuations: {len(continuations)} lists for {prompts} prompts; must be one for each prompt"
        )
    answers = [_tokens(model, given, tokenizer, prompt) for prompt, given in enumerate(continuations)]
    scored = _scored(model, of_segment(model, named), answers, contrast, floor)
    return [[scores.normalized if normalized else scores.raw for scores in of_prompt] for of_prompt in scored]


def has_more_than_text(model: Any, prompt: Any) -> bool:
    """True of what a processor returned with an image, sound or another input beside the text."""
    if not isinstance(prompt, Mapping):
        return False
    known = inspect.signature(unwrapped(model).forward).parameters
    return any(name in known and name not in OF_TEXT and value is not None for name, value in prompt.items())


def encoder_inputs(prompt: Any, tokenizer: Any) -> Mapping[str, Any]:
    """The inputs of an encoder for one text, or its token ids.

    Raises:
        OptionError: text without a tokenizer.
        InputError: no text.
    """
    if isinstance(prompt, Mapping):
        return prompt
    if not isinstance(prompt, str):
        ids = token_ids(prompt, "prompt")
        if not ids:
            raise InputError("the prompt is empty: give at least one token")
        return {"input_ids": torch.tensor([ids])}
    tokenizer = text_tokenizer(tokenizer, required=False)
    if tokenizer is None:
        raise text_needs_tokenizer()
    encoding = tokenizer(prompt, return_tensors="pt")
    return {name: encoding[name] for name in ("input_ids", "attention_mask") if name in encoding}


def _first_input(model: Any, named: Mapping[str, Any]) -> Tensor:
    """(prompts, ...) the input that has one part a prompt."""
    names = ["input_ids"]
    if model.config.is_encoder_decoder:
        names = [model.get_encoder().main_input_name, *names]
    for name in names:
        if isinstance(named.get(name), Tensor):
            return named[name]
    raise InputError(f"inputs: no {names[0]} among {', '.join(map(str, named)) or 'nothing'}; a processor returns it")


def _tokens(model: Any, given: Any, tokenizer: Any, prompt: int) -> list[list[int]]:
    """The token ids of the continuations of one prompt."""
    answers = []
    for index, continuation in enumerate(as_continuations(given)):
        what = f"continuation {index} of prompt {prompt}"
        if isinstance(continuation, str):
            if tokenizer is None:
                raise text_needs_tokenizer()
            continuation = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        ids = token_ids(continuation, what)
        if not ids:
            raise InputError(f"{what} is empty: give at least one token")
        vocab = vocab_size(model)
        foreign = next((token for token in ids if not 0 <= token < vocab), None)
        if foreign is not None:
            raise InputError(f"{what}: token {foreign} is not in the model's vocabulary: must be 0 to {vocab - 1}")
        answers.append(ids)
    if not answers:
        raise InputError(f"prompt {prompt} has no continuations: give at least one")
    return answers


def _scored(
    model: Any,
    given: Mapping[str, Any],
    answers: Sequence[Sequence[list[int]]],
    strategy: ContrastStrategy,
    floor: float,
) -> list[list[Scores]]:
    """Read the prompts with the first continuation of each, then with the second, and so on.

    Args:
        model: that reads them.
        given: the inputs of the prompts.
        answers: for each prompt the token ids of its continuations.
        strategy: that scores.
        floor: see :func:`decoding.score`.
    """
    # By prompt and continuation, the scores of each token so far: (2,), normalized and raw.
    scores: list[list[list[Tensor]]] = [[[] for _ in of_prompt] for of_prompt in answers]
    for turn in range(max(map(len, answers))):
        rows = [of_prompt[turn] if turn < len(of_prompt) else of_prompt[0][:1] for of_prompt in answers]
        longest = max(map(len, rows))
        if turn > 0 and longest == 1:
            continue  # first tokens were scored with those of the first turn
        tokens = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in rows], device=input_device(model))
        for place, at_place in enumerate(_along(model, given, tokens, strategy)):
            for prompt, of_prompt in enumerate(answers):
                for index, ids in enumerate(of_prompt):
                    if place < len(ids) and (turn == 0 if place == 0 else turn == index):
                        row = at_place[prompt]
                        raw = row[ids[place]]
                        normalized = raw - log_sum_exp(row)
                        both = (normalized, normalized if is_plain(strategy) else raw)
                        scores[prompt][index].append(torch.stack(both))
    return [
        [Scores(*torch.stack(of_tokens, 1).clamp_min(floor).cpu()) for of_tokens in of_prompt] for of_prompt in scores
    ]


def _along(model: Any, given: Mapping[str, Any], tokens: Tensor, strategy: ContrastStrategy) -> Iterator[Tensor]:
    """Read (prompts, n) tokens after the prompts; yields (prompts, vocab) float32 scores before each.

    Raises:
        InputError: prompts that cannot be read, or that leave no room for the tokens.
        ModelError: the scores are NaN.
    """
    prepared, model_kwargs, config = prepare_inputs(model, **given)
    check_inputs(model, prepared, model_kwargs)
    new, context = tokens.shape[1], context_of(model)
    if context is not None and prepared.shape[1] + new > context:
        raise InputError(
            f"a prompt of {prepared.shape[1]} tokens and a continuation of {new} are more than the model's context of "
            f"{context}: shorten one of them"
        )
    config.max_length = prepared.shape[1] + new
    text, no_processors = prepared, LogitsProcessorList()
    with within_memory(model, f"{len(tokens)} rows of {config.max_length} tokens"):
        session = cast(ContrastSession, strategy.opener(given)(model, prepared, model_kwargs, config))
        session.leave_nothing_out()
        try:
            for place in range(new):
                scores = session.scores(text, no_processors).float()
                if bool((broken := scores.amax(-1).isnan()).any()):
                    raise not_a_number(model, "model", int(broken.nonzero()[0]))
                yield scores
                if place + 1 < new:
                    session.advance(tokens[:, place])
                    text = torch.cat([text, tokens[:, place : place + 1].to(text.device)], dim=1)
        finally:
            session.release()
