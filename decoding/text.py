"""A prompt string and its continuation: tokens in, text out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decoding.api import generate_with
from decoding.errors import DecodingError, InputError, OptionError
from decoding.models.chat_template import message_content
from decoding.models.devices import input_device
from decoding.models.inputs import check_inputs, context_of
from decoding.models.media import processed
from decoding.models.segments import cuts_segments, is_long
from decoding.models.wrappers import text_tokenizer
from decoding.strategies.registry import StrategySpec

__all__ = [
    "DEFAULT_NEW_TOKENS",
    "Continuation",
    "check_count",
    "check_prompts",
    "continuations",
    "encoded",
    "new_text",
    "new_token_budget",
    "until_end",
]

DEFAULT_NEW_TOKENS = 100
WHISPER_PROMPT = 4  # tokens at most: the start, the language, the task, no timestamps


@dataclass(frozen=True)
class Continuation:
    """The continuation of one prompt by a strategy.

    Attributes:
        prompt: the text given.
        text: prompt and continuation; for chats and encoder-decoders the continuation alone.
        continuation: the new text.
        new_tokens: how many tokens it has, its end token included.
        seconds: wall time of the call that made it, its prompt's forward pass included.
        token_ids: those of prompt and continuation, up to the end token; an encoder-decoder's are its decoder's.
    """

    prompt: str
    text: str
    continuation: str
    new_tokens: int
    seconds: float
    token_ids: tuple[int, ...] = ()


def continuations(
    model: Any,
    tokenizer: Any,
    spec: StrategySpec,
    prompt: str,
    *,
    max_new_tokens: int | None = None,
    seed: int = 0,
    chat: bool = False,
    count: int = 1,
    streamer: Any = None,
    compile: bool = False,
    images: Sequence[Any] = (),
    sound: Any = None,
) -> list[Continuation]:
    """Continue one prompt.

    Args:
        model: a generating transformers model.
        tokenizer: its tokenizer; for images or sound its processor (:func:`decoding.models.loading.load_processor`).
        spec: how to choose tokens.
        prompt: at least one word; "" for a speech recogniser.
        max_new_tokens: None is 100, or as many as the context has left. Of sound that is decoded in segments, they are
            those of each segment, and None is as many as the context has.
        seed: of the random draws, if the strategy makes any.
        chat: put the prompt into the tokenizer's chat template as the user's message.
        count: how many continuations; more than 1 needs sampling or beams.
        streamer: receives the tokens as they come.
        compile: capture the decode step; see :func:`decoding.generate`.
        images: that the prompt is about; see :func:`decoding.models.media.processed`.
        sound: likewise.

    Raises:
        InputError: a prompt as long as the model's context, or images or sound that the model does not take.
        OptionError: more new tokens than the context has left, several texts of a strategy that makes one, or steps
            that cannot be captured.
    """
    check_count(spec, count)
    processor, tokenizer = tokenizer, text_tokenizer(tokenizer)
    spec = spec.with_tokenizer(tokenizer)
    if images or sound is not None:
        inputs = processed(model, processor, prompt, images, sound, chat)
        if "input_ids" in inputs:
            check_inputs(model, inputs["input_ids"], inputs)
    else:
        inputs = encoded(model, tokenizer, prompt, chat)
    length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    long = is_long(model, inputs)
    if long and streamer is not None:
        raise OptionError(
            "--stream: sound that is longer than the model hears at a time is decoded in segments, and the end of one "
            "may be heard again in the next; leave --stream out"
        )
    if long and max_new_tokens is None:
        max_new_tokens = new_token_budget(model, 0, None, most=True)  # of each segment
    if spec.is_stochastic:
        torch.manual_seed(seed)
    began = time.perf_counter()
    sequences = generate_with(
        spec,
        model,
        **inputs,
        max_new_tokens=new_token_budget(model, length, max_new_tokens),
        num_return_sequences=count,
        streamer=streamer,
        tokenizer=tokenizer,
        compile=compile,
        **({"return_timestamps": True} if long else {}),
    )
    sequences = sequences.cpu()  # waits for the device
    seconds = time.perf_counter() - began
    results = []
    for sequence in sequences:
        continuation, new_tokens = new_text(model, tokenizer, sequence, length)
        start = length
        if model.config.is_encoder_decoder:
            text, start = continuation, _decoder_prompt(model)
        else:
            text = continuation.lstrip() if chat else prompt + continuation
        token_ids = tuple(sequence[: start + new_tokens].tolist())
        results.append(Continuation(prompt, text, continuation, new_tokens, seconds / count, token_ids))
    return results


def new_text(model: Any, tokenizer: Any, sequence: torch.Tensor, length: int) -> tuple[str, int]:
    """The text that ``generate`` added to a prompt, up to its end token, and how many tokens it has.

    Args:
        model: the model that generated.
        tokenizer: its tokenizer.
        sequence: (length + new,) token ids of one row without padding in front; those of an encoder-decoder are its
            decoder's.
        length: of the prompt.
    """
    if model.config.is_encoder_decoder:
        new = until_end(sequence[_decoder_prompt(model) :], model)
        return _decoded(tokenizer, new), len(new)
    new = until_end(sequence[length:], model)
    # Tokens are decoded with their prompt: many tokenizers drop the space before a first word.
    before, text = _decoded(tokenizer, sequence[:length]), _decoded(tokenizer, sequence[: length + len(new)])
    return text[len(before) :] if text.startswith(before) else _decoded(tokenizer, new), len(new)


def encoded(model: Any, tokenizer: Any, prompt: str, chat: bool = False) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, each (1, length), of a prompt that the model can read.

    Raises:
        InputError: it is longer than the model's context, or the model's encoder reads no text.
        OptionError: ``chat`` with a tokenizer that has no chat template.
    """
    tokenizer = text_tokenizer(tokenizer)
    if model.config.is_encoder_decoder and model.main_input_name != "input_ids":
        raise InputError(
            f"{type(model).__name__} reads {model.main_input_name} and no text: give --audio FILE (--image FILE for a "
            "model of images) in place of the prompt"
        )
    if chat:
        if not tokenizer.chat_template:
            raise OptionError("--chat: the model's tokenizer has no chat template; leave --chat out")
        encoding = tokenizer.apply_chat_template(
            [{"role": "user", "content": message_content(tokenizer, prompt)}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    else:
        encoding = tokenizer(prompt, return_tensors="pt")
    # Some tokenizers add token_type_ids, which generate() refuses.
    inputs = {name: encoding[name].to(input_device(model)) for name in ("input_ids", "attention_mask")}
    check_inputs(model, inputs["input_ids"], inputs)
    return inputs


def check_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    places: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    chat: bool = False,
) -> None:
    """Raise the error of the first of some prompts that :func:`continuations` would refuse, which tells its place.

    Args:
        model: a generating transformers model.
        tokenizer: its tokenizer.
        prompts: of the model.
        places: of each, as the error names it, "" for none; by default "prompt 1" and so on, where there are several.
        max_new_tokens: as there.
        chat: likewise.

    Raises:
        InputError: as there.
        OptionError: likewise.
    """
    if places is None:
        places = [f"prompt {number}" if len(prompts) > 1 else "" for number in range(1, len(prompts) + 1)]
    for place, prompt in zip(places, prompts, strict=True):
        try:
            inputs = encoded(model, tokenizer, prompt, chat)
            new_token_budget(model, inputs["input_ids"].shape[1], max_new_tokens)
        except DecodingError as error:
            if not place:
                raise
            raise type(error)(f"{place}: {error}") from error


def check_count(spec: StrategySpec, count: int) -> None:
    """Raise OptionError where a strategy cannot make so many texts of one prompt."""
    most = spec.parameters.get("num_beams", 1)
    if count > most and not spec.is_stochastic:
        raise OptionError(
            f"--num-return-sequences {count}: {spec.label} makes {most} a prompt; must be 1 to {most}, or sampling"
        )


def new_token_budget(model: Any, length: int, max_new_tokens: int | None, most: bool = False) -> int:
    """The number of new tokens to generate after a prompt of ``length``.

    Args:
        model: that generates.
        length: of the prompt.
        max_new_tokens: as given.
        most: where none is given, as many as the context has left.

    Raises:
        OptionError: more than the context has left, where a learned position would not exist.
    """
    context = context_of(model)
    if context is None:
        return max_new_tokens or DEFAULT_NEW_TOKENS
    prompt = WHISPER_PROMPT if cuts_segments(model) else 1
    left = context - (prompt if model.config.is_encoder_decoder else length)
    if max_new_tokens is not None and max_new_tokens > left:
        raise OptionError(
            f"--max-new-tokens {max_new_tokens}: must be 1 to {left}: the prompt has {length} tokens and the model's "
            f"context {context}"
        )
    return max_new_tokens or (left if most else min(DEFAULT_NEW_TOKENS, left))


def until_end(tokens: torch.Tensor, model: Any) -> torch.Tensor:
    """The tokens up to the first end token, that one included: what follows in a row is padding."""
    end = model.generation_config.eos_token_id
    ends = torch.isin(tokens, torch.tensor(end)) if end is not None else torch.zeros_like(tokens, dtype=torch.bool)
    return tokens[: int(ends.nonzero()[0]) + 1] if bool(ends.any()) else tokens


def _decoder_prompt(model: Any) -> int:
    """The number of tokens before the new ones in what an encoder-decoder's ``generate`` returns: its start token.

    Whisper's own ``generate``, which decodes long sound piece by piece, returns the new ones alone.
    """
    return 0 if cuts_segments(model) else 1


def _decoded(tokenizer: Any, tokens: torch.Tensor) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
