"""A degraded self: rows of a batch that are read with layers, heads, channels or experts taken from the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from decoding.errors import ModelError, OptionError
from decoding.models.degradation import Degradation
from decoding.models.hooks import NO_KEYWORDS, given_tensor
from decoding.models.row_variants import HookedRows, row_slices
from decoding.models.structure import inspect_model
from decoding.models.text_config import text_config

__all__ = ["DegradedRows", "attention_modules", "check_degradation", "heads_of", "kept_channels"]

# The projection after the heads of an attention module, by the names that transformers' models have for it.
OUTPUT_PROJECTION = re.compile(r"(^|\.)(o_proj|out_proj|c_proj|dense|wo|o|out_lin|proj_out|proj|o_projection)$")
ATTENTION = re.compile(r"(^|\.)[a-z_]*att[a-z_]*$", re.IGNORECASE)
OTHER_TEXT = re.compile(r"cross|encoder_att|encdec|inter_att", re.IGNORECASE)  # attention to an encoder
ROUTER = re.compile(r"Router$")


class DegradedRows(HookedRows):
    """Rows of a batch of which some are read by a degraded model, in the same forward pass as the others.

    Hooks act within :meth:`activated` and in its thread alone. What a row's skipped layers compute is thrown away, so
    it takes the time of a whole row, and its cache has their keys and values, which nothing reads.

    Args:
        model: a transformers model.
        degradations: one a row; None for a row of the whole model.

    Raises:
        OptionError: a layer, head or expert that the model does not have.
        ModelError: a model whose layers, heads or experts cannot be told apart.
    """

    active: ClassVar[ContextVar[Any]] = ContextVar("decoding_degraded_rows", default=None)

    def __init__(self, model: Any, degradations: Sequence[Degradation | None]) -> None:
        self.degradations = list(degradations)
        kinds = [kind for kind in dict.fromkeys(degradations) if kind is not None]
        self._on_outputs: list[tuple[nn.Module, Callable[..., Any]]] = []
        self._on_inputs: list[tuple[nn.Module, Callable[..., Any]]] = []
        for kind in kinds:
            check_degradation(model, kind)
        layers = _layers(model)
        skipped = {layer for kind in kinds for layer in kind.skip_layers}
        dropped = any(kind.dropout > 0 for kind in kinds)
        for index, layer in enumerate(layers):
            if index in skipped or dropped:
                self._on_outputs.append((layer, self._changing_layer(index)))
        for index in sorted({layer for kind in kinds for layer, _ in kind.mask_heads}):
            self._on_inputs.append((_output_projection(model, layers, index), self._masking_heads(model, index)))
        if any(kind.expert_rank is not None for kind in kinds):
            self._on_outputs += [(router, self._route) for router in _routers(model, layers)]

    @property
    def key(self) -> Hashable:
        """The degradation of each row."""
        return tuple(self.degradations)

    def hooked(self) -> Iterator[RemovableHandle]:
        """Put the hooks on."""
        for module, hook in self._on_outputs:
            yield module.register_forward_hook(hook, with_kwargs=True)
        for module, hook in self._on_inputs:
            yield module.register_forward_pre_hook(hook)

    def _rows(self, length: int) -> Iterator[tuple[Degradation, slice]]:
        """The degraded rows, or their tokens, in a first dimension of this length."""
        for degradation, rows in row_slices(self.degradations, length):
            if degradation is not None:
                yield degradation, rows

    def _changing_layer(self, index: int) -> Callable[..., Any]:
        """A forward hook of a decoder layer that undoes what it adds to some rows, or some channels of it."""
        kept: dict[tuple[Degradation, torch.device, torch.dtype], Tensor] = {}

        def change(layer: nn.Module, inputs: Any, named: Mapping[str, Any] = NO_KEYWORDS, output: Any = None) -> None:
            if not self.is_active:
                return
            given = given_tensor(inputs, named)
            states = output[0] if isinstance(output, (tuple, list)) else output
            for degradation, rows in self._rows(len(states)):
                if given is None or given.shape != states.shape:
                    raise ModelError(f"{type(layer).__name__}: what layer {index} adds to its input is not known")
                if index in degradation.skip_layers:
                    states[rows] = given[rows].to(states.device)
                elif degradation.dropout > 0:
                    place = (degradation, states.device, states.dtype)
                    if place not in kept:
                        kept[place] = kept_channels(degradation, index, states.shape[-1]).to(*place[1:])
                    before = given[rows].to(states.device)
                    states[rows] = before + (states[rows] - before) * kept[place]

        return change

    def _masking_heads(self, model: Any, index: int) -> Callable[..., Any]:
        """A forward pre-hook of an attention's output projection that gives it zeros for the masked heads."""
        heads = heads_of(model, index)

        def mask(_projection: nn.Module, inputs: tuple[Any, ...]) -> Any:
            if not self.is_active:
                return None
            states = inputs[0]
            changed = None
            for degradation, rows in self._rows(len(states)):
                masked = dict(degradation.mask_heads).get(index)
                if masked:
                    changed = states.clone() if changed is None else changed
                    by_head = changed[rows].unflatten(-1, (heads, -1))
                    by_head[..., list(masked), :] = 0
                    changed[rows] = by_head.flatten(-2)
            return None if changed is None else (changed, *inputs[1:])

        return mask

    def _route(self, router: nn.Module, _inputs: Any, _named: Any = NO_KEYWORDS, output: Any = None) -> Any:
        """Send the tokens of some rows to the expert of one rank alone, with the weight of all that they had."""
        if not self.is_active:
            return None
        logits, weights, experts = _routing(router, output)
        changed = None
        for degradation, tokens in self._rows(len(experts)):
            if degradation.expert_rank is not None:
                if changed is None:
                    changed = weights.clone(), experts.clone()
                rank = degradation.expert_rank - 1
                order = logits[tokens].argsort(dim=-1, descending=True, stable=True)
                # The others of a token's experts get no weight; they must differ from the chosen one.
                chosen = torch.cat([order[:, rank : rank + 1], order[:, :rank], order[:, rank + 1 :]], dim=-1)
                changed[1][tokens] = chosen[:, : experts.shape[-1]].to(experts.dtype)
                whole = weights[tokens].sum(-1, keepdim=True)
                changed[0][tokens] = torch.nn.functional.pad(whole, (0, weights.shape[-1] - 1))
        return None if changed is None else type(output)((logits, *changed))


def check_degradation(model: Any, degradation: Degradation) -> None:
    """Refuse what cannot be taken from a model.

    Raises:
        OptionError: a layer, head or expert that the model does not have.
        ModelError: a model whose layers, heads or experts cannot be told apart.
    """
    depth = len(_layers(model))
    for layer in (*degradation.skip_layers, *(layer for layer, _ in degradation.mask_heads)):
        if not 0 <= layer < depth:
            raise OptionError(f"layer {layer}: {type(model).__name__} has layers 0 to {depth - 1}")
    if len(set(degradation.skip_layers)) == depth:
        raise OptionError(f"skip_layers: are all {depth} layers of {type(model).__name__}; leave at least one")
    for layer, masked in degradation.mask_heads:
        heads = heads_of(model, layer)
        for head in masked:
            if not 0 <= head < heads:
                raise OptionError(f"head {head}: layer {layer} of {type(model).__name__} has heads 0 to {heads - 1}")
    if degradation.expert_rank is not None:
        router = _routers(model, _layers(model))[0]
        experts = getattr(router, "num_experts", None) or len(next(router.parameters()))
        if not 1 <= degradation.expert_rank <= experts:
            raise OptionError(
                f"expert_rank={degradation.expert_rank}: {type(model).__name__} has {experts} experts, so it must be "
                f"1 (the best) to {experts}"
            )


def heads_of(model: Any, layer: int) -> int:
    """The number of attention heads of a layer.

    Raises:
        ModelError: the config does not say.
    """
    heads = getattr(text_config(model), "num_attention_heads", None)
    heads = heads[layer] if isinstance(heads, (list, tuple)) else heads
    if not isinstance(heads, int):
        raise ModelError(f"{type(model).__name__}: its config has no num_attention_heads, so no head can be masked")
    return heads


def _layers(model: Any) -> nn.ModuleList:
    layers = inspect_model(model).layers
    if layers is None:
        raise ModelError(f"{type(model).__name__}: its decoder layers were not found, so none can be taken from it")
    return layers


def _output_projection(model: Any, layers: nn.ModuleList, index: int) -> nn.Module:
    """The module that takes the concatenated outputs of a layer's attention heads."""
    for attention in attention_modules(layers[index]):
        found = [module for path, module in attention.named_modules() if OUTPUT_PROJECTION.search(path)]
        weight = getattr(found[-1], "weight", None) if found else None
        if weight is not None and weight.dim() == 2 and math.prod(weight.shape) % heads_of(model, index) == 0:
            return found[-1]
    raise ModelError(f"{type(model).__name__}: the heads of its layer {index} cannot be told apart, so none is masked")


def attention_modules(layer: nn.Module) -> list[nn.Module]:
    """The modules of a decoder layer that may be its attention to the text; an outer one before those inside it."""
    return [module for name, module in layer.named_modules() if ATTENTION.search(name) and not OTHER_TEXT.search(name)]


def _routers(model: Any, layers: nn.ModuleList) -> list[nn.Module]:
    routers = [module for module in layers.modules() if ROUTER.search(type(module).__name__)]
    if not routers:
        raise ModelError(
            f"expert_rank: {type(model).__name__} has no router that sends tokens to experts; leave it out"
        )
    return routers


def _routing(router: nn.Module, output: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A router's logits (tokens, experts), the weights and the numbers (tokens, k) of the experts that it chose."""
    if isinstance(output, tuple) and len(output) == 3:
        logits, weights, experts = output
        if experts.dim() == 2 and weights.shape == experts.shape and not experts.is_floating_point():
            return logits, weights, experts
    raise ModelError(
        f"expert_rank: {type(router).__name__} does not return its logits, and the weights and numbers of the experts "
        "that it chose"
    )


def kept_channels(degradation: Degradation, layer: int, size: int) -> Tensor:
    """(size,) float32, 1 / (1 - dropout) for the channels of a layer that are kept, 0 for the others."""
    generator = torch.Generator("cpu").manual_seed(degradation.seed * 100_003 + layer)
    draws = torch.rand(size, generator=generator, dtype=torch.float64, device="cpu")
    return ((draws >= degradation.dropout) / (1 - degradation.dropout)).float()
