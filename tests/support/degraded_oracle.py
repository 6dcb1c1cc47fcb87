"""Models with a part taken away, made by changing a copy of the model: no hooks, no rows, no cache."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.pytorch_utils import Conv1D

__all__ = ["MIXTURES", "dropped_channels", "of_rank", "tiny_mixture", "without_heads", "without_layers"]

MIXTURES = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4}),
    "qwen2-moe": (Qwen2MoeForCausalLM, Qwen2MoeConfig, {"num_experts": 4, "moe_intermediate_size": 24}),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}),
}


def tiny_mixture(name: str, seed: int = 0, **settings: Any) -> Any:
    """A random mixture of 4 experts, 2 a token, in float32."""
    from tiny_models import LLAMA_LIKE

    torch.manual_seed(seed)
    model_class, config_class, experts = MIXTURES[name]
    config = config_class(**{**LLAMA_LIKE, "num_experts_per_tok": 2, **experts, **settings})
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.4)
    model.generation_config.eos_token_id = None
    return model


def without_layers(model: Any, layers: Sequence[int]) -> Any:
    """A copy whose list of layers lacks some."""
    short = copy.deepcopy(model)
    kept = [index for index in range(short.config.num_hidden_layers) if index not in layers]
    parent, name, modules = _layers(short)
    setattr(parent, name, nn.ModuleList([modules[index] for index in kept]))
    types = getattr(short.config, "layer_types", None)
    short.config.num_hidden_layers = len(kept)
    if types is not None:  # windows by the place of a layer
        short.config.layer_types = [types[index] for index in kept]
    return short


def without_heads(model: Any, heads: Mapping[int, Sequence[int]], projection: str) -> Any:
    """A copy whose attention's last projection has zeros for the inputs from some heads."""
    masked = copy.deepcopy(model)
    modules = _layers(masked)[2]
    for layer, numbers in heads.items():
        linear = modules[layer].get_submodule(projection)
        inputs = linear.weight.data if isinstance(linear, Conv1D) else linear.weight.data.T  # (heads · size, dim)
        for head in numbers:
            size = len(inputs) // masked.config.num_attention_heads
            inputs[head * size : (head + 1) * size] = 0
    return masked


def dropped_channels(model: Any, kept: Sequence[Tensor]) -> Any:
    """A copy whose layer l adds kept[l] times what it adds, kept[l] a factor for each channel."""

    class Thinned(nn.Module):
        def __init__(self, layer: Any, factors: Tensor) -> None:
            super().__init__()
            self.layer, self.factors = layer, nn.Parameter(factors)

        def __getattr__(self, name: str) -> Any:  # what the model asks its layers for
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("layer"), name)

        def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = self.layer(states, *args, **kwargs)
            after = output[0] if isinstance(output, tuple) else output
            after = states + (after - states) * self.factors
            return (after, *output[1:]) if isinstance(output, tuple) else after

    thinned = copy.deepcopy(model)
    parent, name, modules = _layers(thinned)
    layers = [Thinned(layer, factors) for layer, factors in zip(modules, kept, strict=True)]
    setattr(parent, name, nn.ModuleList(layers))
    return thinned


def of_rank(model: Any, rank: int) -> Any:
    """A copy whose routers send each token to the expert of a rank alone, with the weight that its experts had."""

    class Router(nn.Module):
        def __init__(self, router: Any) -> None:
            super().__init__()
            self.router = router

        def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, weights, _ = self.router(states)
            expert = logits.topk(rank, dim=-1).indices[:, -1:]
            return logits, weights.sum(-1, keepdim=True), expert

    routed = copy.deepcopy(model)
    for layer in _layers(routed)[2]:
        layer.mlp.gate = Router(layer.mlp.gate)
    return routed


def _layers(model: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    depth = model.config.num_hidden_layers
    return next(
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    )
