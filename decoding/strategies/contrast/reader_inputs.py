"""Inputs beside the text (images, sound, an encoder's text): those of a call, and what each reader is given of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from decoding.errors import InputError
from decoding.models.inputs import TOKEN_TYPES, prompts_among, repeated_inputs
from decoding.transformers_private import CACHE_ARGUMENTS

__all__ = ["TEXT_INPUTS", "CallInputs", "InputChange", "ReaderInputs", "call_inputs", "joined_inputs"]

# Inputs that do not depend on the text, or that every reader has for its own prompt.
TEXT_INPUTS = {
    "attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache_position", "return_dict", *CACHE_ARGUMENTS,
}  # fmt: skip

ReaderInputs = dict[str, Tensor | list[Tensor]]
"""Inputs of one reader by name: a tensor, or for an input of each token one tensor (tokens, ...) a row."""


class CallInputs(dict[str, Any]):
    """Inputs of the generating model beside its prompt, by the names of its ``generate``, with parts for each row.

    Args:
        model: the generating model.
        prompt_ids: (prompts, length) the prompts, each once.
        named: the inputs, of each prompt once.
        times: rows of each prompt.
    """

    def __init__(self, model: Any, prompt_ids: Tensor, named: Mapping[str, Any], times: int) -> None:
        self.times = times
        self.repeated = functools.partial(repeated_inputs, model, prompt_ids, times=times)
        super().__init__(self.repeated(named))


class InputChange(Protocol):
    """How a reader's inputs beside the text differ from the expert's. Equal changes give equal inputs."""

    def inputs(self, given: CallInputs, model: Any) -> dict[str, Any]:
        """Return the reader's inputs for those of the call."""

    def prompt(self, tokens: list[int], model: Any) -> list[int]:
        """Return the tokens that the reader reads of a row's prompt, or of a decoder's."""


def call_inputs(model: Any, given: Mapping[str, Any], rows: int) -> CallInputs:
    """The inputs beside the prompt that a call of ``generate`` was given, repeated where a prompt has several rows.

    Args:
        model: the generating model.
        given: the keyword arguments of the call, with the first argument as ``inputs``.
        rows: of the batch.

    Raises:
        InputError: an input that is no tensor, or whose parts cannot be told to belong to a prompt.
    """
    is_pair = bool(model.config.is_encoder_decoder)
    known = inspect.signature(model.forward).parameters
    prompt = {"decoder_input_ids", "decoder_attention_mask", "labels"} if is_pair else {"input_ids", "inputs_embeds"}
    left_out = {"inputs", *prompt, *(TEXT_INPUTS - {"attention_mask"} if is_pair else TEXT_INPUTS)}
    first = given.get("inputs")
    named = {name: value for name, value in given.items() if name in known and name not in left_out}
    for name, value in named.items():
        if isinstance(value, (list, tuple)):
            raise InputError(
                f"{name} is a {type(value).__name__}: must be a tensor, since other readers of a contrast get parts of "
                "it; a processor returns one with return_tensors='pt'"
            )
    named = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if is_pair and isinstance(first, Tensor):
        named[model.get_encoder().main_input_name] = first
    elif isinstance(first, Tensor) and model.main_input_name not in ("input_ids", "inputs"):
        named[model.main_input_name] = first
    ids = given.get("input_ids", first)
    prompts = prompts_among(named if is_pair else {**named, "input_ids": ids}, rows)
    prompt_ids = ids if isinstance(ids, Tensor) and len(ids) == prompts else torch.empty(prompts, 0)
    return CallInputs(model, prompt_ids, named, rows // prompts)


def reader_inputs(
    role: str,
    given: Mapping[str, Any],
    prompt_shape: tuple[int, int],
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    typed: bool,
) -> ReaderInputs:
    """The inputs of one reader, those of each token fitted to the tokens that it reads.

    Args:
        role: of the reader.
        given: its inputs, of the call's prompt.
        prompt_shape: (batch, length) of that prompt, padding included, which comes first.
        prompts: the prompt's tokens, without padding.
        rows: the tokens that the reader reads.
        typed: whether the types of tokens tell text, 0, from images and sounds.

    Raises:
        InputError: an input of each token that says nothing of the tokens that the reader has beside the prompt's.
    """
    fitted: ReaderInputs = {}
    for name, value in given.items():
        if not isinstance(value, Tensor) or tuple(value.shape[:2]) != prompt_shape:
            fitted[name] = value
            continue
        same = all(list(row) == list(prompt) for row, prompt in zip(rows, prompts, strict=True))
        # What other inputs of each token say of added text is not known.
        if not same and not (typed and name in TOKEN_TYPES):
            raise InputError(
                f"{name}: the expert alone would get it, since it says something of each token and the {role} reads "
                "others: leave it out, or take a strategy without other readers (contrastive search, DoLa)"
            )
        # Prompts end alike: what a reader reads more, it reads before.
        fitted[name] = [
            _ending(values[len(values) - len(prompt) :], len(row))
            for values, prompt, row in zip(value, prompts, rows, strict=True)
        ]
    return fitted


def _ending(values: Tensor, length: int) -> Tensor:
    """(length, ...) the last values, with zeros before them where there are fewer."""
    values = values[max(0, len(values) - length) :]
    return torch.cat([values.new_zeros(length - len(values), *values.shape[1:]), values])


def signature(inputs: ReaderInputs) -> Hashable:
    """Equal for inputs that can be joined."""
    return tuple(
        (name, "tokens", value[0].shape[1:], value[0].dtype)
        if isinstance(value, list)
        else (name, value.shape[1:], value.dtype)
        if isinstance(value, Tensor)
        else (name, repr(value))
        for name, value in sorted(inputs.items())
    )


def joined_inputs(readers: Sequence[ReaderInputs], width: int) -> dict[str, Any]:
    """The inputs of several readers, of which all have the same names, as those of one batch.

    Args:
        readers: their inputs, in the order of their rows.
        width: tokens of the batch, which is padded on the left.
    """
    joined: dict[str, Any] = {}
    for name, first in readers[0].items():
        parts = [inputs[name] for inputs in readers]
        if isinstance(first, list):
            joined[name] = torch.stack([_ending(row, width) for part in parts for row in part])
        elif isinstance(first, Tensor):
            joined[name] = torch.cat([part for part in parts if isinstance(part, Tensor)])
        else:
            joined[name] = first
    return joined
