"""Decoder layers, backbone and head of a model, found in the recorded calls of one forward pass."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from decoding.errors import ModelError
from decoding.models.forward_errors import is_environment_error
from decoding.models.head import HEAD_TRANSFORMS
from decoding.models.hooks import Call, chained, same
from decoding.models.probe import relative_error, tolerance

__all__ = ["as_one_module", "call_backbone", "find_backbone", "find_layers", "is_separable"]

# Relative RMS error of logits under which a head transform counts as the model's own: next to none, for a soft-cap at
# 30 changes logits of 2 by a thousandth, and those of 20 by a seventh.
REBUILT, HALF_REBUILT = 1e-5, 1e-2


def is_separable(model: Any, backbone: nn.Module, inputs: dict[str, Any], hidden: Tensor) -> bool:
    """True where the backbone, called directly, returns the hidden states that it returned in the model's forward.

    Args:
        model: a generating model.
        backbone: see :func:`find_backbone`.
        inputs: of the model's forward.
        hidden: (batch, n, dim) what the backbone returned in it.
    """
    if model.config.is_encoder_decoder:
        encoded = inputs.get("encoder_outputs") or model.get_encoder()(inputs["input_ids"], return_dict=True)
        inputs = {"decoder_input_ids": inputs["decoder_input_ids"], "encoder_outputs": encoded}
    try:
        output = call_backbone(model, backbone, {**inputs, "use_cache": False})
    except (TypeError, ValueError, RuntimeError, AttributeError) as refusal:
        if is_environment_error(refusal):
            raise
        return False
    return relative_error(output.last_hidden_state, hidden) < tolerance(hidden.dtype)


def call_backbone(model: Any, backbone: nn.Module, inputs: dict[str, Any]) -> Any:
    """The output of a backbone for inputs that ``prepare_inputs_for_generation`` made for the whole model."""
    if not model.config.is_encoder_decoder:
        return backbone(**inputs, return_dict=True)
    # Every encoder-decoder of transformers names these alike; is_separable checks each before it is relied on.
    inputs = dict(inputs)
    encoded = inputs.pop("encoder_outputs")
    attention_mask = inputs.pop("attention_mask", None)
    inputs.pop("input_ids", None)
    for name in ("input_ids", "attention_mask", "position_ids", "inputs_embeds"):
        if f"decoder_{name}" in inputs:
            inputs[name] = inputs.pop(f"decoder_{name}")
    return backbone(**inputs, encoder_hidden_states=encoded[0], encoder_attention_mask=attention_mask, return_dict=True)


def find_backbone(model: Any, calls: list[Call], logits: Any) -> tuple[nn.Module, Tensor, str | None, nn.Module]:
    """The module whose last hidden states become logits, and how.

    Args:
        model: a generating model.
        calls: of all its modules in one forward pass.
        logits: (batch, n, vocab) what that returned.

    Returns:
        The backbone, its hidden states (batch, n, dim), the name in ``HEAD_TRANSFORMS`` (None where no transform
        rebuilds the logits), and the head.

    Raises:
        ModelError: no module returns hidden states.
    """
    decoder = model.get_decoder()
    # OPT's forward calls the decoder inside its base model, Llama's the base model itself: whichever is called counts.
    usual = [decoder] if model.config.is_encoder_decoder else [model.base_model, decoder]
    encoder = set(model.get_encoder().modules()) if model.config.is_encoder_decoder else set()
    inner = [
        call
        for call in calls
        if call.module is not model
        and call.module not in encoder
        and isinstance(_hidden_states(call), Tensor)
        and not same(_hidden_states(call), logits)  # FSMT's decoder returns its logits under that name
    ]
    inner.sort(key=lambda call: next((i for i, module in enumerate(usual) if module is call.module), len(usual)))
    if not inner or not isinstance(logits, Tensor):
        raise ModelError(f"{type(model).__name__}: the hidden states that its head reads were not found")
    for call in inner:
        hidden = call.output.last_hidden_state
        head_transform, head = _matching_transform(model, calls, hidden, logits)
        if head_transform is not None and head is not None:
            return call.module, hidden, head_transform, head
    return inner[0].module, _hidden_states(inner[0]), None, model.get_output_embeddings()


def _hidden_states(call: Call) -> Any:
    return getattr(call.output, "last_hidden_state", None)


def _matching_transform(
    model: Any, calls: list[Call], hidden: Tensor, logits: Tensor
) -> tuple[str | None, nn.Module | None]:
    """The name of the transform that rebuilds the model's own logits, and the modules that hidden states go through.

    A soft-cap hardly changes small logits, so the closest transform counts, not the first that is close.
    """
    best: tuple[str | None, nn.Module | None] = (None, None)
    error = REBUILT if model.dtype in (torch.float32, torch.float64) else HALF_REBUILT
    for name, (before, after) in HEAD_TRANSFORMS.items():
        try:
            given = before(model, hidden)
            head = as_one_module(chained(calls, given) or [])
            if head is None:
                continue
            rebuilt = head(given)  # not what it returned before: Chameleon forbids tokens in that very tensor
            if not isinstance(rebuilt, Tensor):
                continue
            rebuilt = after(model, rebuilt)
        except (AttributeError, TypeError, RuntimeError) as refusal:
            if is_environment_error(refusal):
                raise
            continue  # the model has no such scale
        if (this_error := relative_error(rebuilt, logits)) < error:
            best, error = (name, head), this_error
    return best


def as_one_module(chain: list[Call]) -> nn.Module | None:
    """A module that does what these calls did, one after another; None for no calls."""
    if len(chain) < 2:
        return chain[0].module if chain else None
    return nn.Sequential(*(call.module for call in chain))


def find_layers(
    backbone: nn.Module, calls: list[Call], hidden: Tensor, config: Any
) -> tuple[nn.ModuleList | None, list[Call], str | None]:
    """The decoder layers of a backbone.

    Args:
        backbone: see :func:`find_backbone`.
        calls: of all modules in one forward pass.
        hidden: (batch, n, dim) what the backbone returned.
        config: of the text model.

    Returns:
        The layers (None where there are none), the calls between the last of them and ``hidden``, and the reason why
        the output of a lower layer cannot be read as logits (None where it can).
    """
    count = getattr(config, "num_hidden_layers", None) or getattr(config, "decoder_layers", None)
    by_module: dict[nn.Module, list[Call]] = {}
    for call in calls:
        by_module.setdefault(call.module, []).append(call)
    refused: list[tuple[bool, nn.ModuleList, str]] = []
    for candidate in [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]:
        # Not called are an encoder's, cross-attention to images where there are none, and experts.
        called = [by_module[layer] for layer in candidate if layer in by_module]
        if not called:
            continue
        first = [layer_calls[0] for layer_calls in called]
        layers = candidate if len(called) == len(candidate) else nn.ModuleList(call.module for call in first)
        chain = None
        if any(len(layer_calls) > 1 for layer_calls in called):
            reason = "it reads each of its layers more than once a token"
        elif any(call.given is None or call.given.shape[:2] != hidden.shape[:2] for call in first) or not all(
            same(one.returned, other.given) for one, other in pairwise(first)
        ):
            reason = "its layers do not hand one hidden state a token from one to the next"
        else:
            reason = "no module between its last layer and its head was found"
            last = first[-1]
            chain = None if last.returned is None else chained(calls[calls.index(last) :], last.returned, hidden)
        if chain is not None:
            return layers, chain, None
        refused.append((len(candidate) == count, layers, reason))
    # Of the lists of layers, the first that has as many as the config says.
    best = max(refused, key=lambda candidate: candidate[0], default=None)
    return (None, [], "its decoder layers were not found") if best is None else (best[1], [], best[2])
