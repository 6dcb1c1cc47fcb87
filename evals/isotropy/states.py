"""Hidden states of all layers from one forward pass over texts of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.errors import ModelError, OptionError
from decoding.models.devices import input_device
from decoding.models.hooks import collect_inputs, collect_outputs
from decoding.models.layers import depth_of
from decoding.models.structure import inspect_model
from decoding.models.wrappers import require_decoder_only

__all__ = ["layer_name", "layer_numbers", "read_states"]


def layer_numbers(model: Any, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, ascending, from 0 (the embeddings) to the model's depth (what its head reads).

    Args:
        model: a decoder-only transformers model.
        layers: numbers, negative ones from the end; None for all.

    Raises:
        OptionError: a layer that the model does not have.
        ModelError: an encoder-decoder model, or one whose decoder layers were not found.
    """
    require_decoder_only(model)
    depth = depth_of(model)
    if layers is None:
        return tuple(range(depth + 1))
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise OptionError(
                f"layer {layer}: {type(model).__name__} has {depth} layers; must be 0 (the embeddings) to {depth} "
                "(what its head reads), or -1 for the last, -2, ..."
            )
    return tuple(sorted({layer % (depth + 1) for layer in layers}))


def layer_name(layer: int, depth: int) -> str:
    """A layer in words."""
    if layer == depth:
        return f"layer {layer}, as the head reads it"
    return f"layer {layer}" if layer else "embeddings"


def read_states(model: Any, texts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[Tensor]:
    """States (batch, n, dim) of texts in the given layers; those after the end of a text are meaningless.

    Args:
        model: a decoder-only transformers model.
        texts: token ids, one sequence a text.
        layers: ascending numbers, from :func:`layer_numbers`.

    Raises:
        ModelError: the model's layers do not pass on one state a token.
    """
    parts = inspect_model(model)
    assert parts.layers is not None
    width = max(map(len, texts))
    # Short texts are padded on the right, where no token attends to the padding. So no mask is needed: with one,
    # attention would use a slower kernel.
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=input_device(model))
    inputs = {"input_ids": ids, "use_cache": False}
    lower = [parts.layers[layer] for layer in layers if layer < len(parts.layers)]
    with collect_inputs(lower) as states, collect_outputs(parts.backbone) as outputs:
        if parts.separable:
            outputs.append(parts.forward_backbone(model, inputs))
        else:
            model(**inputs, return_dict=True)
    if len(states) != len(lower) or any(tensor.shape[:-1] != ids.shape for tensor in states):
        raise ModelError(
            f"{type(model).__name__}: its layers do not pass on one state a token; expected the last layer alone (-1)"
        )
    return [*states, outputs[-1].last_hidden_state] if len(layers) > len(lower) else states
