"""LoRA adapters of a model: those on it, by name, and those that were loaded from a folder and stay beside it.

peft is needed only where there are adapters, and is imported only then.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decoding.errors import ModelError, OptionError, nearest
from decoding.models.small_batch_linear import has_only_weights

__all__ = [
    "BASE",
    "Adapter",
    "LoadedAdapter",
    "LoraWeights",
    "active_adapters",
    "adapter_state",
    "adapters_of",
    "check_adapter",
    "check_not_merged",
    "check_plain_lora",
    "expert_adapter",
    "is_plain_layer",
    "lora_layers",
    "lora_weights",
    "scalings_of",
]

BASE = "__base__"  # peft's name for rows that no adapter touches


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """A LoRA adapter's part of one linear layer.

    Attributes:
        down: A, from the layer's inputs to the rank.
        up: B, from the rank to the layer's outputs.
        dropout: before A.
        scaling: of the product.
    """

    down: nn.Linear
    up: nn.Linear
    dropout: nn.Module
    scaling: float

    def __call__(self, states: Tensor) -> Tensor:
        """The adapter's output (..., out) for the layer's inputs (..., in)."""
        return self.up(self.down(self.dropout(states.to(self.down.weight.dtype)))) * self.scaling

    def add_to(self, output: Tensor, states: Tensor) -> None:
        """Add the adapter's output for the layer's inputs (..., in) to the layer's output (..., out), in place."""
        if not self._is_one_product(output, states):
            output += self(states).to(output.dtype)
            return
        low = nn.functional.linear(states, self.down.weight).flatten(0, -2)
        output.view(-1, output.shape[-1]).addmm_(low, self.up.weight.T, alpha=self.scaling)

    def _is_one_product(self, output: Tensor, states: Tensor) -> bool:
        """True where B, the scaling and the sum may be one operation: nothing stands between them, and float32 leaves
        the same numbers but for the last bits. A step of one token is otherwise as long in these as in the layer.
        """
        down, up, dropout = self.down, self.up, self.dropout
        if not (output.dtype == states.dtype == down.weight.dtype == up.weight.dtype == torch.float32):
            return False
        kept = type(dropout) is nn.Identity or (type(dropout) is nn.Dropout and not dropout.training)
        return kept and output.is_contiguous() and has_only_weights(down) and has_only_weights(up)


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """A LoRA adapter that was loaded for a model and stays beside it; see
    :func:`decoding.models.adapter_folders.load_adapter`.

    Attributes:
        name: of the adapter.
        layers: its weights by the names of the model's modules, in the order of these.
    """

    name: str
    layers: Mapping[str, LoraWeights]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Its weights, under the names that they would have on the model."""
        for module, weights in self.layers.items():
            yield f"{module}.lora_A.{self.name}.weight", weights.down.weight
            yield f"{module}.lora_B.{self.name}.weight", weights.up.weight


Adapter = str | LoadedAdapter
"""An adapter on a model, by its name, or one beside it."""


def adapters_of(model: Any) -> dict[str, Any]:
    """The configurations of the adapters on a model, by name."""
    configs = getattr(model, "peft_config", None)
    return dict(configs) if isinstance(configs, dict) else {}


def check_adapter(model: Any, name: str) -> None:
    """Refuse an adapter on a model whose rows cannot share a batch with the base model's.

    Raises:
        OptionError: the model has no adapter of this name.
        ModelError: it is merged, disabled, no plain LoRA, or changes more than the decoder layers.
    """
    adapters = adapters_of(model)
    if name not in adapters:
        raise OptionError(f"adapter {name!r}: the model has no adapter of this name{nearest(name, adapters)}")
    check_plain_lora(model, name)
    check_not_merged(model)
    if any(layer.disable_adapters for layer in lora_layers(model)):
        raise ModelError(f"adapter {name!r} is disabled: call enable_adapters() on the model first")


def check_plain_lora(model: Any, name: str) -> None:
    """Refuse an adapter on a model that is no plain LoRA of the decoder layers.

    Raises:
        ModelError: another kind of adapter, DoRA, or one that changes the embeddings or the head.
    """
    config = adapters_of(model)[name]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ModelError(f"adapter {name!r} is a {kind}: only LoRA rows can share a batch with the base model's")
    if config.use_dora:
        raise ModelError(
            f"adapter {name!r} uses DoRA, which rescales the base weights: its rows cannot share a batch with the base "
            "model's; train it with use_dora=False, or give the merged model as the amateur"
        )
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    outside = [layer for layer in lora_layers(model) if layer is head or layer is embeddings]
    if getattr(config, "modules_to_save", None) or any(name in adapter_names(layer) for layer in outside):
        raise ModelError(
            f"adapter {name!r} changes the embeddings or the head, which expert and amateur share here: it must be on "
            "the decoder layers alone"
        )


def check_not_merged(model: Any) -> None:
    """Refuse a model whose adapters are merged into its weights: an amateur's rows would run with them too.

    Raises:
        ModelError: names the way out.
    """
    if any(layer.merged for layer in lora_layers(model)):
        raise ModelError(
            "the model's adapters are merged into its weights, so base and adapter cannot be told apart: call "
            "unmerge_adapter() first"
        )


def expert_adapter(model: Any, others: Collection[Adapter]) -> str:
    """The adapter of the expert's rows: the active one, unless that is one of the other readers'; ``BASE`` for none.

    Raises:
        ModelError: several adapters beside theirs are active.
    """
    enabled = [layer for layer in lora_layers(model) if not layer.disable_adapters]
    active = {name for layer in enabled for name in layer.active_adapters} - {*others}
    if len(active) > 1:
        raise ModelError(
            f"the adapters {', '.join(sorted(active))} are active together: a row of a shared batch runs with one; "
            "activate one with set_adapter()"
        )
    return next(iter(active), BASE)


def adapter_state(model: Any) -> tuple[Any, ...]:
    """The settings that change when adapters are activated, scaled, merged or disabled; weights are not among them."""
    return tuple(
        (tuple(layer.active_adapters), tuple(layer.merged_adapters), layer.disable_adapters, *layer.scaling.items())
        for layer in lora_layers(model)
    )


def lora_layers(model: Any) -> list[Any]:
    """The modules of a model that peft put around its own to hold LoRA adapters."""
    return [module for module in model.modules() if is_lora(module)] if "peft" in sys.modules else []


def is_lora(module: nn.Module) -> bool:
    """True for a module that holds LoRA adapters."""
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def is_plain_layer(layer: Any, names: set[str]) -> bool:
    """True where peft computes these adapters' rows of a layer by its general method, without a variant of LoRA."""
    from peft.tuners.lora import LoraLayer

    general = type(layer)._mixed_batch_forward is LoraLayer._mixed_batch_forward
    return general and not names & set(getattr(layer, "lora_variant", ()))


def lora_weights(layer: Any, name: str) -> LoraWeights:
    """An adapter's weights in one of peft's linear layers, which has it."""
    return LoraWeights(layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name], layer.scaling[name])


def active_adapters(model: Any) -> list[str]:
    """The names of the LoRA adapters that a model reads with, as it is; none where they are disabled."""
    layers = [layer for layer in lora_layers(model) if not layer.disable_adapters]
    return sorted({name for layer in layers for name in adapter_names(layer) & set(layer.active_adapters)})


def scalings_of(model: Any, adapter: Adapter) -> dict[str, float]:
    """What multiplies the product of a LoRA adapter's weights, by the names of its modules."""
    if isinstance(adapter, LoadedAdapter):
        return {module: weights.scaling for module, weights in adapter.layers.items()}
    return {
        module: layer.scaling[adapter]
        for module, layer in model.named_modules()
        if "peft" in sys.modules and is_lora(layer) and adapter in adapter_names(layer)
    }


def adapter_names(layer: Any) -> set[str]:
    """The names of the adapters in one of peft's layers."""
    return {*layer.lora_A.keys(), *layer.lora_embedding_A.keys()}
