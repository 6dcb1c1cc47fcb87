"""Checks of a prompt: its tokens, its mask, the cache that it continues, its length."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from decoding.cache.growing import tokens_in
from decoding.errors import InputError, ModelError
from decoding.models.devices import input_device
from decoding.models.text_config import placeholder_tokens, text_config
from decoding.transformers_private import CACHE_ARGUMENT, CALLERS_CACHE_ARGUMENTS, cache_in

__all__ = [
    "TOKEN_TYPES",
    "check_cache",
    "check_inputs",
    "check_mask",
    "check_tokens",
    "check_weights",
    "check_whole",
    "context_of",
    "given_inputs",
    "prompts_among",
    "repeated_inputs",
    "with_named_inputs",
]

# What models of images and sounds take the types of tokens by, where 0 is text.
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


def with_named_inputs(inputs: Any, named: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The first argument of ``generate`` and its keyword arguments, where the first may be a tokenizer's output.

    Args:
        inputs: a tensor, None, or what a tokenizer or processor returns (``BatchEncoding``, ``BatchFeature``, any
            mapping), which joins the keyword arguments.
        named: the keyword arguments.

    Returns:
        The first argument, None where it was a mapping, and all keyword arguments.

    Raises:
        InputError: text or another thing that is no tensor, or an input that is given twice.
    """
    named = dict(named)
    if isinstance(inputs, Mapping):
        if not any(isinstance(value, Tensor) for value in inputs.values()):
            raise InputError("the first argument holds no tensor: a tokenizer returns them with return_tensors='pt'")
        twice = sorted(name for name in inputs if named.get(name) is not None)
        if twice:
            raise InputError(f"{twice[0]} is given twice: in the first argument and by name")
        named = {**named, **inputs}
        inputs = None
    tokens = inputs if inputs is not None else named.get("input_ids")
    if isinstance(tokens, str):
        raise InputError("the prompt is text: give its tokens, tokenizer(text, return_tensors='pt')")
    if tokens is not None and not isinstance(tokens, Tensor):
        raise InputError(
            f"the prompt's tokens must be a tensor (batch, length), and are a {type(tokens).__name__}: a tokenizer "
            "returns tensors with return_tensors='pt'"
        )
    if isinstance(tokens, Tensor) and tokens.dim() < 2:
        raise InputError(f"the prompt's tokens {tuple(tokens.shape)}: must be (batch, length)")
    mask = named.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() < 2 or mask.is_meta):
        given = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise InputError(
            f"attention_mask must be a tensor (batch, length) of ones, and zeros for padding, and is {given}"
        )
    if isinstance(tokens, Tensor) and tokens.is_complex():
        check_whole(tokens)
    if named.get("input_ids") is not None:
        check_whole(named["input_ids"])
    _check_named(named)
    return inputs, named


def check_whole(tokens: Tensor) -> None:
    """Raise InputError where a prompt's tokens are no whole numbers."""
    if not _is_whole(tokens):
        raise InputError(f"input_ids {_kind(tokens)}: must be whole numbers, (batch, length)")


def _check_named(named: Mapping[str, Any]) -> None:
    """Raise InputError where embeddings, positions or a cache are of another kind than transformers takes."""
    embeds, positions = named.get("inputs_embeds"), named.get("position_ids")
    if embeds is not None and not (isinstance(embeds, Tensor) and embeds.is_floating_point() and embeds.dim() >= 3):
        raise InputError(f"inputs_embeds must be a tensor of floats (batch, length, size), and is {_kind(embeds)}")
    if positions is not None and not (isinstance(positions, Tensor) and positions.dim() >= 1 and _is_whole(positions)):
        raise InputError(f"position_ids must be a tensor of whole numbers (batch, length), and is {_kind(positions)}")
    for name in CALLERS_CACHE_ARGUMENTS:
        cache = named.get(name)
        if cache is not None and not isinstance(cache, Cache):
            raise InputError(
                f"{name} is a {type(cache).__name__}: must be a Cache of transformers such as DynamicCache"
            )


def _kind(value: Any) -> str:
    """What a value is, for messages: the shape and dtype of a tensor, the type of anything else."""
    return f"{tuple(value.shape)} of {_dtype(value)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_tokens(model: Any, input_ids: Tensor, name: str = "input_ids") -> None:
    """Refuse tokens that the model does not have: on a GPU they would end every process that uses it.

    Args:
        model: the model that reads them.
        input_ids: (batch, length).
        name: of the argument, for messages.

    Raises:
        InputError: names the first.
    """
    if not isinstance(input_ids, Tensor):
        raise InputError(f"{name} must be a tensor (batch, length), and is a {type(input_ids).__name__}")
    if input_ids.dim() != 2 or not _is_whole(input_ids):
        raise InputError(
            f"{name} {tuple(input_ids.shape)} of {_dtype(input_ids)}: must be whole numbers, (batch, length)"
        )
    if input_ids.shape[0] == 0:
        raise InputError("the batch is empty: give at least one row")
    # Encoders may have other tokens than their decoders; placeholders of images and sounds have ids of their own.
    if model.config.is_encoder_decoder or text_config(model) is not model.config:
        return
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if isinstance(known, int) and input_ids.numel() > 0:
        least, largest = torch.stack(input_ids.aminmax()).tolist()
        if least < 0 or largest >= known:
            row, place = ((input_ids < 0) | (input_ids >= known)).nonzero()[0].tolist()
            raise InputError(
                f"{name}: token {int(input_ids[row, place])} (row {row}, place {place}) is not in the model's "
                f"vocabulary: must be 0 to {known - 1}"
            )


def check_mask(model: Any, input_ids: Tensor, model_kwargs: Mapping[str, Any]) -> None:
    """Refuse an ``attention_mask`` that does not mark which tokens are padding.

    Args:
        model: the model that reads them.
        input_ids: (batch, length); for an encoder-decoder those of its decoder, while the mask is its encoder's.
        model_kwargs: keyword arguments of the model, with a mask or without one, perhaps with a cache.

    Raises:
        InputError: another shape, other values than 0 and 1, or a row of padding alone.
    """
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    past = tokens_in(cache_in(model_kwargs)) > 0
    if isinstance(positions, Tensor) and not past and positions.shape[-1] != input_ids.shape[1]:
        # transformers makes them from the mask, and then drops a mask that is all ones, whatever its width.
        raise InputError(
            f"input_ids {tuple(input_ids.shape)}: attention_mask or position_ids have {positions.shape[-1]} places"
        )
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise InputError(
            f"attention_mask must be a tensor (batch, length) of ones, and zeros for padding, and is {given}"
        )
    # With a cache, the mask may be that of the whole text where input_ids are only its new tokens.
    free = model.config.is_encoder_decoder or past
    wide = mask.shape[1] >= input_ids.shape[1] if not model.config.is_encoder_decoder else True
    if len(mask) != len(input_ids) or not wide or not (free or mask.shape == input_ids.shape):
        raise InputError(f"attention_mask {tuple(mask.shape)} does not fit input_ids {tuple(input_ids.shape)}")
    tokens = mask != 0
    empty, odd = torch.stack([~tokens.any(1), (tokens & (mask != 1)).any(1)]).tolist()
    if any(odd):
        raise InputError(f"attention_mask: row {odd.index(True)} holds other numbers than 1 (a token) and 0 (padding)")
    if any(empty):
        raise InputError(f"attention_mask: row {empty.index(True)} is all padding; every row needs at least one token")


def check_cache(model: Any, cache: Any) -> None:
    """Refuse a cache of another kind than the model's.

    Raises:
        InputError: names the kind that is expected.
    """
    if cache is None:
        return
    if not isinstance(cache, Cache) or (isinstance(cache, EncoderDecoderCache) and not model.config.is_encoder_decoder):
        raise InputError(
            f"{CACHE_ARGUMENT} is a {type(cache).__name__}: for {type(model).__name__} it must be a Cache of "
            "transformers such as DynamicCache"
        )


def given_inputs(model_kwargs: Mapping[str, Any]) -> set[str]:
    """Names of a model's keyword arguments that hold something: not None, False or an empty mapping.

    transformers adds an empty mapping of encoded images to text without any.
    """
    return {
        name
        for name, value in model_kwargs.items()
        if value is not None and value is not False and not (isinstance(value, Mapping) and not value)
    }


def context_of(model: Any) -> int | None:
    """The number of tokens that a model (of an encoder-decoder, its decoder) can read; None where its config does not
    say.
    """
    config = text_config(model)
    names = ("max_position_embeddings", "max_target_positions")  # the latter of speech recognisers
    context = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    return context if isinstance(context, int) and context > 0 else None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_weights(model: Any) -> None:
    """Raise ModelError where a model has no weights."""
    if input_device(model).type == "meta":
        raise ModelError(f"{type(model).__name__} is on the meta device, without weights: load them first")


def check_inputs(model: Any, input_ids: Tensor, model_kwargs: dict[str, Any]) -> None:
    """Refuse prompts that cannot be read.

    Raises:
        InputError: an empty prompt or batch, tokens that the model does not have, a mask or cache that does not fit, a
            row that is all padding, a prompt as long as the context.
        ModelError: the model has no weights.
    """
    check_weights(model)
    check_tokens(model, input_ids)
    embeds = model_kwargs.get("inputs_embeds")
    length = max(
        input_ids.shape[1],
        embeds.shape[1] if embeds is not None and not model.config.is_encoder_decoder else 0,
    )
    if length == 0:
        raise InputError("the prompt is empty: give at least one token (for text from nothing, the model's bos token)")
    context = context_of(model)
    if context is not None and context <= length:
        raise InputError(
            f"the prompt has {length} tokens and the model's context {context}: shorten it by at least "
            f"{length - context + 1} for one new token"
        )
    check_cache(model, cache_in(model_kwargs))
    if embeds is None or model.config.is_encoder_decoder:
        check_mask(model, input_ids, model_kwargs)


def prompts_among(named: Mapping[str, Any], rows: int) -> int:
    """The number of prompts that inputs belong to, where a batch may have several rows of each (beams, several texts).

    Tokens, their mask or their types have one part a prompt. Of other inputs the one with the fewest parts tells.

    Args:
        named: inputs of a model by name.
        rows: of the batch, which is the answer where the inputs tell nothing.
    """
    parts = {name: len(value) for name, value in named.items() if isinstance(value, Tensor) and value.dim() > 0}
    of_each = [parts[name] for name in ("input_ids", "attention_mask", *TOKEN_TYPES) if name in parts]
    return min((count for count in of_each[:1] or parts.values() if count and rows % count == 0), default=rows)


def repeated_inputs(model: Any, input_ids: Tensor, named: Mapping[str, Any], times: int) -> dict[str, Any]:
    """The inputs of a model beside its prompts, for prompts that are repeated, each several times one after another.

    (``GenerationMixin._expand_inputs_for_generation`` repeats each patch of an image of Qwen-VL by itself.)

    Args:
        model: reads them.
        input_ids: (prompts, length) each prompt once; of an encoder-decoder, the encoder's or any other (prompts, ...).
        named: inputs by name. What has one part a prompt is repeated so, and images by the tokens that stand for them.
        times: of each prompt.

    Raises:
        InputError: parts that cannot be told to belong to a prompt.
    """
    prompts = len(input_ids)
    if times == 1:
        return dict(named)
    placeholders = torch.tensor(sorted(placeholder_tokens(model)), dtype=torch.long, device=input_ids.device)
    counts = [int(count) for count in torch.isin(input_ids, placeholders).reshape(prompts, -1).sum(1)]
    repeated = dict(named)
    for name, value in named.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        if len(value) == prompts:
            repeated[name] = value.repeat_interleave(times, dim=0)
            continue
        sizes = [1] * len(value)
        if name.endswith("_grid_thw"):
            sizes = value.prod(-1).tolist()
        repeated[name] = torch.cat(
            [part for of_prompt in _of_prompts(name, value, sizes, counts) for part in [of_prompt] * times]
        )
    return repeated


def _of_prompts(name: str, value: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> list[Tensor]:
    """The parts of a tensor that belong to each prompt, in proportion to its tokens that stand for them.

    Args:
        name: of the input, for messages.
        value: (parts, ...).
        sizes: of each part.
        counts: of each prompt's tokens.
    """
    if len(counts) == 1:
        return [value]
    per_token = sum(sizes) / sum(counts) if sum(counts) else 0.0
    ends = list(itertools.accumulate(sizes, initial=0))
    wanted = [round(count * per_token) for count in itertools.accumulate(counts, initial=0)]
    if not per_token or any(end not in ends for end in wanted):
        raise InputError(
            f"{name} {tuple(value.shape)}: which of {len(counts)} prompts its parts belong to is not known, so they "
            "cannot be repeated for beams or several texts a prompt; give one prompt"
        )
    places = [ends.index(end) for end in wanted]
    return [value[start:end] for start, end in itertools.pairwise(places)]
