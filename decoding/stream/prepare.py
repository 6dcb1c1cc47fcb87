"""Inputs of a decoding method, prepared as ``generate`` prepares them."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from decoding.models.inputs import check_weights
from decoding.models.segments import cuts_segments, segment_frames
from decoding.models.wrappers import check_model
from decoding.transformers_private import cache_in, without_stop_strings

__all__ = ["prepare_inputs"]


class _Prepared(Exception):  # noqa: N818 - no error
    """Ends ``generate`` once it has prepared its inputs."""


def prepare_inputs(model: Any, **inputs: Any) -> tuple[Tensor, dict[str, Any], GenerationConfig]:
    """Token ids, keyword arguments and generation config, as ``generate`` would pass them to a decoding method.

    Args:
        model: a generating transformers model.
        inputs: what ``generate`` takes: ``input_ids`` (batch, length), ``attention_mask``, ...

    Raises:
        ModelError: what is given as the model does not generate text, or has no weights.

    Returns:
        (batch, length) token ids, the model's keyword arguments, and a greedy config without a maximum length.
    """
    check_model(model)
    check_weights(model)
    prepared: dict[str, Any] = {}

    def keep(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        prepared.update(kwargs, input_ids=input_ids)
        raise _Prepared  # a text without new tokens is more than Whisper's own generate() can end

    use_cache = inputs.pop("use_cache", True)
    config = GenerationConfig(
        max_new_tokens=1, do_sample=False, num_beams=1, num_return_sequences=1, penalty_alpha=None, use_cache=use_cache
    )  # what is left open is filled in from the model's own
    if model.generation_config.cache_implementation and cache_in(inputs) is None:
        config.cache_implementation = "dynamic"  # the model's own setting is for the text of generate()
    generate = model.generate
    if cuts_segments(model) and inputs.get("decoder_input_ids") is not None and not _is_padded(model, inputs):
        # The model's own generate() would cut the sound, and find out its language first: a pass of the encoder more.
        generate = functools.partial(GenerationMixin.generate, model)
    with contextlib.suppress(_Prepared):
        generate(**inputs, generation_config=without_stop_strings(config), custom_generate=keep)
    for name in ("logits_processor", "stopping_criteria"):
        prepared.pop(name)
    config = prepared.pop("generation_config")
    config.max_length = None  # the length of the text is not known here
    return prepared.pop("input_ids"), prepared, config


def _is_padded(model: Any, inputs: dict[str, Any]) -> bool:
    """True where a model's own ``generate`` must bring features to the length of a segment."""
    features = inputs.get("input_features")
    return isinstance(features, Tensor) and features.shape[-1] != segment_frames(model)
