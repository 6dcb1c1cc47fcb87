"""Where a model keeps its decoder layers, final norm and head, found by running it and checked against its own logits.

Strategies need three things that ``forward()`` does not give separately: the hidden states after the final norm, logits
of some of these only, and (for early exits) the layers in between. Nothing here is believed from attribute names: a
head that is rebuilt outside the model must give the model's own logits, or the model's own forward is used instead.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from decoding.errors import ModelError, OptionError
from decoding.failures import forward_pass, says_nothing_of_the_model
from decoding.few_rows import few_rows
from decoding.placement import input_device

__all__ = ["Anatomy", "anatomy", "captured_inputs", "captured_outputs", "relative_error", "tolerance"]

# What is done to hidden states before the head and to logits after it, each a function of model and tensor.
HeadRecipe = tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor], Tensor]]


@dataclass(frozen=True)
class Anatomy:
    """What :func:`anatomy` found.

    Attributes:
        backbone: the module whose ``last_hidden_state`` goes into the head; called directly in place of the model
            where ``separable``.
        head: the output embeddings.
        recipe: name of the way from hidden states to logits (see ``HEAD_RECIPES``); None where none gave the model's
            own logits.
        separable: whether ``backbone(**inputs)`` followed by the recipe equals the model's own forward.
        layers: the decoder layers in order; None where they were not found.
        final_norm: the module between the last layer and the head; None where there is none or it was not found.
        no_early_exit: why the output of a lower layer cannot be read as logits; None where it can.
    """

    backbone: nn.Module
    head: nn.Module
    recipe: str | None
    separable: bool
    layers: nn.ModuleList | None
    final_norm: nn.Module | None
    no_early_exit: str | None

    def forward_backbone(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The backbone's output for the model's own inputs; needs ``separable``."""
        return call_backbone(model, self.backbone, inputs)

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of hidden states (..., dim) that the final norm has seen; needs ``recipe``."""
        before, after = self._recipe(model)
        with few_rows(hidden.numel() // hidden.shape[-1], hidden.device):
            return after(model, self.head(before(model, hidden)))

    def all_logits(
        self, model: Any, hidden: Tensor, normed: Tensor, bare: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Final and early logits from one matrix product, which reads the head's weights once.

        Args:
            model: the model.
            hidden: (rows, ..., dim) after the final norm.
            normed: (early rows, ..., dim) what lower layers were given, before any final norm, to be read as what the
                model would say if it ended there: final norm, head, soft-cap and scale as after its last layer.
            bare: likewise, to be read by the LM head alone on the raw state, as DoLa has it; None for none.

        Returns:
            Logits (rows, ..., vocab) of each of the three.
        """
        before, after = self._recipe(model)
        bare = normed[:0] if bare is None else bare
        early = before(model, normed if self.final_norm is None else self.final_norm(normed))
        states = torch.cat([before(model, hidden), *(each.to(hidden.device) for each in (early, bare))])
        with few_rows(states.numel() // states.shape[-1], states.device):
            product = self.head(states)
        final, lower, raw = product.split([len(hidden), len(normed), len(bare)])
        return after(model, final), after(model, lower), raw

    def _recipe(self, model: Any) -> HeadRecipe:
        if self.recipe is None:
            raise ModelError(f"{type(model).__name__}: no way from hidden states to its logits is known")
        return HEAD_RECIPES[self.recipe]

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


NO_NUMBERS = "its logits are NaN: its weights or its dtype overflow"

_found: weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Anatomy]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def anatomy(model: Any) -> Anatomy:
    """Find the parts of a generating model, once per model (and again when its dtype or device has changed).

    Costs one forward pass over a handful of tokens.

    Raises:
        ModelError: the model has no output embeddings, so it cannot generate text.
    """
    head = model.get_output_embeddings()
    layers = None if head is None else _decoder_layers(model)
    key = (model.dtype, str(input_device(model)), model.training, id(head), id(layers))
    per_model = _found.setdefault(model, {})
    if key not in per_model:
        with forward_pass(model, 1, PROBED, 0):
            found = _examine(model)
        if found.no_early_exit == NO_NUMBERS:
            return found  # which says nothing of the model once it is mended
        for old in [old for old, each in per_model.items() if each.head is not head or each.layers is not layers]:
            per_model.pop(old, None)  # of parts that were replaced, and need not be kept
        per_model[key] = found
    return per_model[key]


def _examine(model: Any) -> Anatomy:
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no output embeddings (lm_head): only models that generate text can be decoded"
        )
    decoder = model.get_decoder()
    decoder = _decoder(model)
    layers = _decoder_layers(model)
    watched = {name: child for name, child in decoder.named_children() if not isinstance(child, nn.ModuleList)}
    inputs = probe_inputs(model)
    # OPT's forward calls the decoder inside its base model, Llama's the base model itself: whichever is called counts.
    own_base = model.base_model is not model and not model.config.is_encoder_decoder
    outer = model.base_model if own_base else decoder
    with (
        captured_outputs(outer) as from_outer,
        captured_outputs(decoder) as from_decoder,
        captured_outputs(layers[-1] if layers else decoder) as last,
        captured_inputs(list(layers or ())) as given,
    ):
        logits = model(**inputs, use_cache=False, return_dict=True).logits
    backbone, outputs = (outer, from_outer) if from_outer else (decoder, from_decoder)
    hidden = getattr(outputs[-1], "last_hidden_state", None) if outputs else None
    if backbone is model or not isinstance(hidden, Tensor) or not isinstance(logits, Tensor):
        raise ModelError(f"{type(model).__name__}: the hidden states that its head reads were not found")
    recipe = _matching_recipe(model, head, hidden, logits)
    separable = recipe is not None and _is_separable(model, backbone, inputs, hidden)
    norm, reason = _final_norm(watched, _first_tensor(last[-1]) if layers and last else None, hidden)
    if layers and (len(given) != len(layers) or any(each.shape[:2] != hidden.shape[:2] for each in given)):
        reason = "its layers do not hand one hidden state a token from one to the next"
    if recipe is None:
        reason = NO_NUMBERS if bool(logits.isnan().any()) else "its logits could not be rebuilt from its hidden states"
    return Anatomy(backbone, head, recipe, separable, layers, norm, reason)


def _is_separable(model: Any, backbone: nn.Module, inputs: dict[str, Tensor], hidden: Tensor) -> bool:
    """Whether calling the backbone directly gives the hidden states that it gave inside the model's forward."""
    if model.config.is_encoder_decoder:
        encoded = model.get_encoder()(inputs["input_ids"], return_dict=True)
        inputs = {"decoder_input_ids": inputs["decoder_input_ids"], "encoder_outputs": encoded}
    try:
        output = call_backbone(model, backbone, {**inputs, "use_cache": False})
    except (TypeError, ValueError, RuntimeError, AttributeError) as refusal:
        if says_nothing_of_the_model(refusal):
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


PROBED = 6  # tokens


def probe_inputs(model: Any, batch: int = 1, length: int = PROBED) -> dict[str, Tensor]:
    """Token ids (batch, length) for any text model, from a fixed generator; decoder ids where it takes them."""
    vocab = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    low = min(10, vocab - 1)  # the first ids are often pad, bos and the like

    def ids() -> Tensor:
        return torch.randint(low, min(vocab, 1000), (batch, length), generator=generator).to(input_device(model))

    if model.config.is_encoder_decoder:
        return {"input_ids": ids(), "decoder_input_ids": ids()}
    return {"input_ids": ids()}


def tolerance(dtype: torch.dtype) -> float:
    """Relative RMS error under which two ways of computing the same hidden states count as equal."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2


def relative_error(value: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference, in float64; infinity where either is not finite."""
    value, reference = value.double(), reference.double().to(value.device)
    if value.shape != reference.shape or not bool(torch.isfinite(value).all()):
        return float("inf")
    return float((value - reference).square().mean().sqrt() / reference.square().mean().sqrt().clamp_min(1e-30))


@contextmanager
def captured_outputs(module: nn.Module, part: Callable[[Any], Any] = lambda output: output) -> Iterator[list[Any]]:
    """Collect what ``module`` returns to this thread while the context is open, or a part of it."""
    outputs: list[Any] = []
    thread = threading.get_ident()

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            outputs.append(part(output))

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def captured_inputs(layers: Sequence[nn.Module], last: bool = False) -> Iterator[list[Tensor]]:
    """Collect the hidden states (batch, n, dim) that each layer is given in this thread while the context is open.

    Args:
        layers: decoder layers, in order.
        last: only those of the last token, (batch, 1, dim).
    """
    states: list[Tensor] = []
    thread = threading.get_ident()

    # In other threads torch may call a hook that is being taken off, as one that is given no keywords.
    def keep(_module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any] = MappingProxyType({})) -> None:
        if threading.get_ident() == thread:
            hidden = inputs[0] if inputs else named.get("hidden_states")
            if isinstance(hidden, Tensor):
                states.append(hidden[:, -1:].clone() if last else hidden)  # a view would keep the rest

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


# --- from hidden states to logits ------------------------------------------------------------------------------------


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _as_it_is(model: Any, tensor: Tensor) -> Tensor:
    return tensor


def _softcapped(model: Any, logits: Tensor) -> Tensor:
    cap = _text_config(model).final_logit_softcapping
    return torch.tanh(logits / cap) * cap


# The ways in which transformers' models treat hidden states before the head and logits after it. The one
# that comes closest to the model's own logits is used.
HEAD_RECIPES: dict[str, HeadRecipe] = {
    "head": (_as_it_is, _as_it_is),
    "head, soft-capped": (_as_it_is, _softcapped),  # Gemma 2
    "head, times logit_scale": (_as_it_is, lambda model, logits: logits * _text_config(model).logit_scale),  # Cohere
    "head, over logits_scaling": (
        _as_it_is,
        lambda model, logits: logits / _text_config(model).logits_scaling,
    ),  # Granite
    "head, times lm_head_multiplier": (  # Falcon-H1
        _as_it_is,
        lambda model, logits: logits * _text_config(model).lm_head_multiplier,
    ),
    "head, plus final_logits_bias": (
        _as_it_is,
        lambda model, logits: logits + model.final_logits_bias.to(logits.device),
    ),  # BART, Marian
    "head of hidden / sqrt(d_model)": (  # T5 with tied embeddings
        lambda model, hidden: hidden * _text_config(model).d_model ** -0.5,
        _as_it_is,
    ),
}


def _matching_recipe(model: Any, head: nn.Module, hidden: Tensor, logits: Tensor) -> str | None:
    errors: dict[str, float] = {}
    for name, (before, after) in HEAD_RECIPES.items():
        try:
            rebuilt = after(model, head(before(model, hidden)))
        except (AttributeError, TypeError, RuntimeError) as refusal:
            if says_nothing_of_the_model(refusal):
                raise
            continue  # the model has no such scale, or the head has another width
        errors[name] = relative_error(rebuilt, logits)
    # The closest, not the first that is close: a soft-cap hardly shows in the small logits of a probe.
    closest = min(errors, key=lambda name: errors[name], default=None)
    return closest if closest is not None and errors[closest] < tolerance(model.dtype) else None


# --- layers and final norm -------------------------------------------------------------------------------------------


def _decoder(model: Any) -> nn.Module:
    decoder: nn.Module = model.get_decoder()
    if decoder is model:  # Llama 4's and Mllama's text models name a base model that they do not have
        return next((child for child in model.children() if hasattr(child, "layers")), decoder)
    return decoder


def _decoder_layers(model: Any) -> nn.ModuleList | None:
    decoder, config = _decoder(model), _text_config(model)
    count = getattr(config, "num_hidden_layers", None) or getattr(config, "decoder_layers", None)
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
    exact = [candidate for candidate in lists if len(candidate) == count]
    return exact[0] if exact else (max(lists, key=len) if lists else None)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def _final_norm(
    children: dict[str, nn.Module], last_layer: Tensor | None, hidden: Tensor
) -> tuple[nn.Module | None, str | None]:
    """The child that maps the last layer's output to the hidden states that the head reads; else why there is none."""
    if last_layer is None:
        return None, "its decoder layers were not found"
    if last_layer.shape == hidden.shape and relative_error(last_layer, hidden) < tolerance(hidden.dtype):
        return None, None  # no final norm: the layers' outputs go to the head as they are
    for child in children.values():
        parameters = [p for p in inspect.signature(child.forward).parameters.values() if p.default is p.empty]
        if len([p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]) != 1:
            continue
        try:
            normed = child(last_layer)
        except (RuntimeError, TypeError, ValueError, IndexError) as refusal:
            if says_nothing_of_the_model(refusal):
                raise
            continue  # an embedding or rotary module, not a norm
        if isinstance(normed, Tensor) and relative_error(normed, hidden) < tolerance(hidden.dtype):
            return child, None
    return None, "no module between its last layer and its head was found"
