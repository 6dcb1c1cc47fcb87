"""Tiny models with random weights, one for every type that transformers maps to a causal language model.

A configuration class is made small by the names of its fields: ``hidden_size`` is 32 everywhere, a window is 8 tokens.
Layers are chosen so that each kind of the default configuration (sliding, full, linear, dense, sparse) is among them.
:data:`EXCEPTIONS` has the rest.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from decoding.errors import ModelError, one_line
from decoding.tools.architectures.exceptions import EXCEPTIONS, NOT_TEXT
from decoding.tools.architectures.exceptions_other_inputs import OTHER_INPUTS
from decoding.tools.architectures.sizes import SMALL, VOCAB, WINDOW

__all__ = ["VOCAB", "WINDOW", "causal_types", "scale_weights", "shrunk", "tiny_config", "tiny_model"]

LAYERS = 4


def causal_types() -> list[str]:
    """Every model type in transformers' mapping of causal language models, sorted."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a type, in float32, eval mode, without end tokens.

    Raises:
        ModelError: the type generates no text, or cannot be built; the message is the reason.
    """
    if model_type in NOT_TEXT:
        raise ModelError(f"{model_type}: {NOT_TEXT[model_type]}")
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=torch.float32).eval()
    except Exception as error:  # of any kind, from the type's own code: the reason why it cannot be built
        raise ModelError(f"{model_type}: cannot be built ({type(error).__name__}: {one_line(error)})") from error
    scale_weights(model)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = None  # random models end at random
    return model


@torch.no_grad()
def scale_weights(model: nn.Module) -> None:
    """Scale fresh weights up, so that the logits differ, and give each zero bias a value."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or "A_log" in name:
            continue
        if parameter.dim() >= 2 and 0 < (spread := float(parameter.std())) < 0.05:
            parameter.mul_(0.15 / spread)  # near 1 / sqrt(width), so that attention prefers some tokens
        if not bool(parameter.any()):
            parameter.normal_(0.0, 0.1)


def tiny_config(model_type: str) -> PretrainedConfig:
    """The small configuration of a type."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**shrunk(config_class, model_type))


def shrunk(config_class: type[PretrainedConfig], model_type: str) -> dict[str, Any]:
    """Arguments that make a small configuration of a class, nested ones as dictionaries."""
    exceptions = dict((EXCEPTIONS | OTHER_INPUTS).get(model_type, {}))
    fields = {field.name for field in dataclasses.fields(config_class)}
    chosen: dict[str, Any] = {name: value for name, value in SMALL.items() if name in fields}
    # Some types have windows only on request.
    windows = ("use_sliding_window", "sliding_window", "max_window_layers") if "use_sliding_window" in fields else ()
    default = config_class(**{name: SMALL[name] for name in windows if name in fields})
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]  # latent attention gives each head its keys
    chosen |= _layers(default, chosen)
    values = vars(default)  # an attribute that varies by layer may not be asked for
    for name in config_class.sub_configs:
        nested = values.get(name)
        if isinstance(nested, PretrainedConfig) and name not in exceptions:
            chosen[name] = {"model_type": nested.model_type, **shrunk(type(nested), nested.model_type)}
    for name in fields:
        value = values.get(name)
        if name not in chosen and name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            chosen[name] = min(value, 3)
    return {**chosen, **exceptions}


def _layers(default: PretrainedConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """Lists with one entry a layer, cut to layers of each kind of the default's."""
    values = vars(default)
    depth = getattr(default, "num_hidden_layers", None)
    if not isinstance(depth, int):
        return {}
    fields = [field.name for field in dataclasses.fields(default)]
    lists = {name: list(value) for name in fields if isinstance(value := values.get(name), (list, tuple))}
    numbers = list(range(depth))  # a list of layers by number, such as Llama 4's ``moe_layers``, follows from the rest
    by_layer = {
        name: value for name, value in lists.items() if len(value) == depth and name not in chosen and value != numbers
    }
    kinds = list(zip(*by_layer.values(), strict=True)) if by_layer else [()] * depth
    first = sorted({kinds.index(kind) for kind in kinds})
    others = [layer for layer in range(depth) if layer not in first]
    kept = sorted(first + others[: max(0, LAYERS - len(first))])
    return {name: [value[layer] for layer in kept] for name, value in by_layer.items()} | (
        {"num_hidden_layers": len(kept)} if "num_hidden_layers" in fields else {}
    )
