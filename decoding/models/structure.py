"""Where a model keeps its decoder layers, final norm and head, found by running it and checked against its own logits.

Strategies need three things that ``forward()`` does not give separately: the hidden states after the final norm, logits
of some of these only, and (for early exits) the layers in between. Nothing here is believed from attribute names: a
head that is rebuilt outside the model must give the model's own logits, or the model's own forward is used instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from decoding.errors import ModelError, OptionError
from decoding.models.forward_errors import forward_pass, is_environment_error
from decoding.models.head import HEAD_TRANSFORMS, HeadTransform, unpadded
from decoding.models.hooks import Call, chained, recorded_calls, same
from decoding.models.memo import PerModelMemo, model_cache_key
from decoding.models.probe import NO_NUMBERS, PROBED, probe_inputs, relative_error, tolerance
from decoding.models.small_batch_linear import small_batch_linear

__all__ = ["ModelStructure", "inspect_model"]


@dataclass(frozen=True)
class ModelStructure:
    """What :func:`anatomy` found.

    Attributes:
        backbone: the module whose ``last_hidden_state`` goes into the head; called directly in place of the model
            where ``separable``.
        head: the output embeddings, and what a model has between its hidden states and these (BERT's transform).
        recipe: name of the way from hidden states to logits (see ``HEAD_TRANSFORMS``); None where none gave the model's
            own logits.
        separable: whether ``backbone(**inputs)`` followed by the recipe equals the model's own forward.
        layers: the decoder layers in order; None where they were not found.
        final_norm: what is between the last layer and the head; None where there is nothing or it was not found.
        projection: the part of that without which a layer's output does not fit the head: the way down from a wider
            model (OPT-350m), the merging of several residual streams (DeepSeek-V4). None where all layers' do.
        state_dims: of what a layer is given for each token: 1, or 2 where that is several residual streams.
        no_early_exit: why the output of a lower layer cannot be read as logits; None where it can.
    """

    backbone: nn.Module
    head: nn.Module
    head_transform: str | None
    separable: bool
    layers: nn.ModuleList | None
    final_norm: nn.Module | None
    projection: nn.Module | None
    state_dims: int
    no_early_exit: str | None

    def forward_backbone(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The backbone's output for the model's own inputs; needs ``separable``."""
        return call_backbone(model, self.backbone, inputs)

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of hidden states (..., dim) that the final norm has seen; needs ``recipe``."""
        before, after = self._head_transform(model)
        with small_batch_linear(hidden.numel() // hidden.shape[-1], hidden.device):
            return after(model, self.head(before(model, hidden)))

    def before_head(self, states: Tensor, final_norm: bool) -> Tensor:
        """What the head reads (..., dim) of states that lower layers were given.

        Args:
            states: (..., dim), or (..., streams, dim) where there are several residual streams.
            final_norm: True for what the model would read if it ended there; False for the raw state, as DoLa has it.
        """
        passed = self.final_norm if final_norm else self.projection
        if passed is None:
            return states
        if self.state_dims == 1:
            return passed(states)
        tokens = states.shape[: -self.state_dims]
        return passed(states.reshape(1, -1, *states.shape[len(tokens) :])).reshape(*tokens, -1)

    def exit_logits(self, model: Any, states: Tensor, final_norm: bool) -> Tensor:
        """Logits (..., vocab) of states that lower layers were given.

        With the final norm they are what the model would say if it ended there: head, soft-cap and scale as after its
        last layer. Without it they are those of the head alone on the raw state.
        """
        states = self.before_head(states, final_norm)
        return self.logits(model, states) if final_norm else unpadded(model, self.head(states))

    def all_logits(
        self, model: Any, hidden: Tensor, normed: Tensor | None, bare: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Final and early logits from one matrix product, which reads the head's weights once.

        Args:
            model: the model.
            hidden: (rows, ..., dim) after the final norm.
            normed: (early rows, ..., dim) what lower layers were given, to be read with the final norm, see
                :meth:`exit_logits`; None for none.
            bare: likewise, to be read without it.

        Returns:
            Logits (rows, ..., vocab) of each of the three.
        """
        before, after = self._head_transform(model)
        nothing = hidden[:0]
        early = nothing if normed is None else before(model, self.before_head(normed, True))
        raw = nothing if bare is None else self.before_head(bare, False)
        states = torch.cat([before(model, hidden), *(each.to(hidden.device) for each in (early, raw))])
        with small_batch_linear(states.numel() // states.shape[-1], states.device):
            product = self.head(states)
        final, lower, raw = product.split([len(hidden), len(early), len(raw)])
        return after(model, final), after(model, lower), unpadded(model, raw)

    def _head_transform(self, model: Any) -> HeadTransform:
        if self.head_transform is None:
            raise ModelError(f"{type(model).__name__}: no way from hidden states to its logits is known")
        return HEAD_TRANSFORMS[self.head_transform]

    def layers_before(self, model: Any, exits: Sequence[int]) -> list[nn.Module]:
        """The layers that read what the model has after so many layers each.

        Raises:
            ModelError: the layers of this model cannot be read.
            OptionError: an exit that is not from 0 to the number of layers - 1.
        """
        if not exits:
            return []
        if self.layers is None or self.no_early_exit is not None:
            raise ModelError(f"{type(model).__name__}: no early exit from its lower layers: {self.no_early_exit}")
        for exit_ in exits:
            if not 0 <= exit_ < len(self.layers):
                raise OptionError(
                    f"layer {exit_}: {type(model).__name__} has {len(self.layers)} layers; accepted are exits after 0 "
                    f"(the embeddings) to {len(self.layers) - 1} of them"
                )
        return [self.layers[exit_] for exit_ in exits]


_structures: PerModelMemo[ModelStructure] = PerModelMemo()


@torch.no_grad()
def inspect_model(model: Any) -> ModelStructure:
    """Find the parts of a generating model, once per model (and again when its dtype or device has changed).

    Costs one forward pass over a handful of tokens.

    Raises:
        ModelError: the model has no output embeddings, so it cannot generate text.
    """
    parts = _replaceable(model)

    def inspect() -> ModelStructure:
        # Parts that were replaced need not be kept.
        _structures.discard(model, lambda key: key[-1] != parts)
        with forward_pass(model, 1, PROBED, 0):
            return _examine(model)

    # NaN logits say nothing about the model once its weights are mended.
    return _structures.get(
        model, (*model_cache_key(model), parts), inspect, lambda structure: structure.no_early_exit != NO_NUMBERS
    )


def _replaceable(model: Any) -> tuple[nn.Module | None, ...]:
    """The head and the lists of layers: what is put into a model's place when it is cut or resized."""
    head = model.get_output_embeddings()
    lists = () if head is None else model.get_decoder().children()
    return head, *(each for each in lists if isinstance(each, nn.ModuleList))


def _examine(model: Any) -> ModelStructure:
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"{type(model).__name__} has no output embeddings (lm_head): only models that generate text can be decoded"
        )
    inputs = probe_inputs(model)
    with recorded_calls(model) as calls:
        logits = model(**inputs, use_cache=False, return_dict=True).logits
    backbone, hidden, head_transform, head = _find_backbone(model, calls, logits)
    separable = head_transform is not None and _is_separable(model, backbone, inputs, hidden)
    layers, rest, reason = _decoder_layers(backbone, calls, hidden, model.config.get_text_config(decoder=True))
    changing = [call for call in rest if _shape(call.given) != _shape(call.returned)]
    entry = next((call.given for call in calls if layers is not None and call.module is layers[0]), None)
    state_dims = 1 if entry is None else entry.dim() - 2
    if head_transform is None:
        reason = NO_NUMBERS if bool(logits.isnan().any()) else "its logits could not be rebuilt from its hidden states"
    return ModelStructure(
        backbone, head, head_transform, separable, layers, _in_turn(rest), _in_turn(changing), state_dims, reason
    )


def _is_separable(model: Any, backbone: nn.Module, inputs: dict[str, Any], hidden: Tensor) -> bool:
    """Whether calling the backbone directly gives the hidden states that it gave inside the model's forward."""
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
    """Run the backbone on what ``prepare_inputs_for_generation`` made for the whole model."""
    if not model.config.is_encoder_decoder:
        return backbone(**inputs, return_dict=True)
    # Every encoder-decoder of transformers names these alike; each is checked by _is_separable before it is relied on.
    inputs = dict(inputs)
    encoded = inputs.pop("encoder_outputs")
    attention_mask = inputs.pop("attention_mask", None)
    inputs.pop("input_ids", None)
    for name in ("input_ids", "attention_mask", "position_ids", "inputs_embeds"):
        if f"decoder_{name}" in inputs:
            inputs[name] = inputs.pop(f"decoder_{name}")
    return backbone(**inputs, encoder_hidden_states=encoded[0], encoder_attention_mask=attention_mask, return_dict=True)


# Relative RMS error of logits under which a recipe counts as the model's own: next to none, for a soft-cap at 30
# changes logits of 2 by a thousandth, and those of 20 by a seventh.
REBUILT, HALF_REBUILT = 1e-5, 1e-2


# --- from layers to hidden states to logits --------------------------------------------------------------------------


def _find_backbone(model: Any, calls: list[Call], logits: Any) -> tuple[nn.Module, Tensor, str | None, nn.Module]:
    """The module whose last hidden states become logits, these states, the recipe for it and the head.

    Raises:
        ModelError: there is none.
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
        and not same(_hidden_states(call), logits)  # FSMT's decoder gives its logits under that name
    ]
    inner.sort(key=lambda call: next((i for i, each in enumerate(usual) if each is call.module), len(usual)))
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
    """The recipe that gives the model's own logits, and the modules that hidden states go through in it.

    Small logits are hardly changed by a soft-cap, so the closest recipe counts and not the first that is close.
    """
    best: tuple[str | None, nn.Module | None] = (None, None)
    error = REBUILT if model.dtype in (torch.float32, torch.float64) else HALF_REBUILT
    for name, (before, after) in HEAD_TRANSFORMS.items():
        try:
            given = before(model, hidden)
            head = _in_turn(chained(calls, given) or [])
            if head is None:
                continue
            rebuilt = head(given)  # anew: Chameleon forbids tokens in the tensor that its head returned
            if not isinstance(rebuilt, Tensor):
                continue
            rebuilt = after(model, rebuilt)
        except (AttributeError, TypeError, RuntimeError) as refusal:
            if is_environment_error(refusal):
                raise
            continue  # the model has no such scale
        if (own := relative_error(rebuilt, logits)) < error:
            best, error = (name, head), own
    return best


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _in_turn(chain: list[Call]) -> nn.Module | None:
    """One module that does what these calls did."""
    if len(chain) < 2:
        return chain[0].module if chain else None
    return nn.Sequential(*(call.module for call in chain))


def _decoder_layers(
    backbone: nn.Module, calls: list[Call], hidden: Tensor, config: Any
) -> tuple[nn.ModuleList | None, list[Call], str | None]:
    """The decoder layers, the calls between the last of them and ``hidden``, and why a lower one cannot be left at."""
    count = getattr(config, "num_hidden_layers", None) or getattr(config, "decoder_layers", None)
    by_module: dict[nn.Module, list[Call]] = {}
    for call in calls:
        by_module.setdefault(call.module, []).append(call)
    refused: list[tuple[bool, nn.ModuleList, str]] = []
    for candidate in [each for each in backbone.modules() if isinstance(each, nn.ModuleList)]:
        # Those that are not called: an encoder's, cross-attention to images where there are none, experts.
        own = [by_module[layer] for layer in candidate if layer in by_module]
        if not own:
            continue
        layers = candidate if len(own) == len(candidate) else nn.ModuleList(reads[0].module for reads in own)
        first = [reads[0] for reads in own]
        chain = None
        if any(len(reads) > 1 for reads in own):
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
    best = max(refused, key=lambda each: each[0], default=None)  # the first of those with as many as the config says
    return (None, [], "its decoder layers were not found") if best is None else (best[1], [], best[2])
