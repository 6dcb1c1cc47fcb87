"""The models and calls whose steps can be captured as CUDA graphs, and why others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from decoding.cache.growing import GrowingLayer, layers_of
from decoding.cache.layer_kinds import is_recurrent
from decoding.capabilities.branching import branching_of
from decoding.capabilities.probes import open_probe_stream, probe_batch, run_probe
from decoding.errors import OptionError
from decoding.models.devices import input_device, is_tensor_parallel
from decoding.models.inputs import given_inputs
from decoding.models.memo import PerModelMemo, model_cache_key
from decoding.models.probe import relative_error, tolerance
from decoding.models.row_variants import RowVariants
from decoding.models.structure import inspect_model
from decoding.stream.cuda_graph_steps import GraphPlan
from decoding.stream.static_layout import LayerShape
from decoding.transformers_private import (
    CACHE_ARGUMENT,
    OUTPUT_RECORDING_MODULE,
    cache_in,
    is_callers_cache,
    optimized_for_decode,
)

__all__ = ["check_cuda_graphs", "cuda_graphs_requested", "request_cuda_graphs"]

PLAIN = {"attention_mask", CACHE_ARGUMENT, "position_ids", "use_cache", "logits_to_keep"}


def request_cuda_graphs(config: Any, wanted: bool) -> None:
    """Note on the generation config of a call, which reaches every stream of it, whether its steps are captured."""
    config.compile = wanted


def cuda_graphs_requested(config: GenerationConfig | None) -> bool:
    """True where :func:`request_cuda_graphs`, or a user's own config, asks for captured steps."""
    return bool(getattr(config, "compile", False))


def check_cuda_graphs(
    model: Any, model_kwargs: Mapping[str, Any], config: GenerationConfig, variants: RowVariants | None
) -> GraphPlan:
    """The plan by which the steps after this prompt are captured.

    Raises:
        OptionError: they cannot; says why.
    """
    reason = _call_reason(model, model_kwargs, config, variants)
    if reason is None:
        found = _cuda_graphs(model)
        if found.reason is None:
            return GraphPlan(found.layers)
        reason = found.reason
    raise OptionError(f"compile=True: {type(model).__name__}'s steps cannot be captured: {reason}; leave compile out")


def _call_reason(
    model: Any, model_kwargs: Mapping[str, Any], config: GenerationConfig, variants: RowVariants | None
) -> str | None:
    """The reason why this call cannot be captured, whatever the model; None where it can."""
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder, whose decoder takes positions from the length of its cache"
    cache = cache_in(model_kwargs)
    if model_kwargs.get("use_cache") is False:
        return "use_cache=False recomputes the whole text at each step"
    if cache is None or (hasattr(cache, "layers") and is_recurrent(cache)):
        return "it keeps a state of another kind than keys and values"
    if is_callers_cache(cache) or (isinstance(cache, DynamicCache) and cache.get_seq_length() > 0):
        return f"{CACHE_ARGUMENT} is a cache of the caller's own, and a captured step needs one at a fixed place"
    if type(cache) is not DynamicCache or cache.offloading:
        kind = config.cache_implementation or type(cache).__name__
        return f"its cache is {kind}; it must be the default cache"
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name, None) or model_kwargs.get(name):
            return f"{name}=True asks for what a captured step does not keep"
    others = sorted(given_inputs(model_kwargs) - PLAIN)
    if others:
        return f"its steps are given {', '.join(others)} beside tokens, positions and mask"
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    if positions is None:
        return "its forward() takes no position ids"
    if positions.dim() != 2 or (mask is not None and mask.dim() != 2):
        return "masks and positions must be (batch, length)"
    if torch.is_autocast_enabled(input_device(model).type):
        return "under torch.autocast weights are cast anew in each call; load the model in that dtype instead"
    if variants is not None and not variants.by_slices:
        return "its adapters are not all plain LoRA on linear layers, so peft picks their rows by lists"
    hook = _foreign_hook(model)
    if hook is not None:
        return f"{hook} hangs on its modules as a forward hook, which a captured step would not run"
    return None


def _foreign_hook(model: Any) -> str | None:
    """The name of a forward hook that is neither this library's nor transformers' own recording of outputs."""
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            home = getattr(hook, "__module__", None) or ""
            if not home.startswith("decoding.") and home != OUTPUT_RECORDING_MODULE:
                return str(getattr(hook, "__qualname__", type(hook).__name__))
    return None


# --- what is true of a model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Capturable:
    """The layers of a model's cache, or the reason why its steps cannot be captured."""

    layers: tuple[LayerShape, ...] = ()
    reason: str | None = None


_memo = PerModelMemo[_Capturable]()


@torch.no_grad()
def _cuda_graphs(model: Any) -> _Capturable:
    """Checked once per model, attention implementation, dtype and device; a few passes over a dozen tokens."""
    return _memo.get(model, model_cache_key(model), lambda: _check(model))


def _check(model: Any) -> _Capturable:
    reason = _reason(model)
    if reason is not None:
        return _Capturable(reason=reason)
    layers = _layers(model)
    return (
        _Capturable(layers, _difference(model, layers))
        if layers
        else _Capturable(reason="its cache is of another kind")
    )


def _reason(model: Any) -> str | None:
    branching = branching_of(model)
    if branching.way != "shared prefix":
        return f"it does not branch by tree attention ({branching.way}: {branching.reason})"
    if not inspect_model(model).separable:
        return "its head cannot be applied separately from its layers"
    if is_tensor_parallel(model):
        return "its weights are split over several ranks"
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        return f"its weights lie on several devices ({', '.join(sorted(devices))})"
    return None


def _layers(model: Any) -> tuple[LayerShape, ...]:
    """The layers of the cache that ``generate`` gives the model; empty where some are no plain attention layers."""
    inputs, _ = probe_batch(model)
    shapes = []
    for layer in layers_of(open_probe_stream(model, inputs).cache):
        sliding = type(layer) is DynamicSlidingWindowLayer
        if not (sliding or type(layer) is GrowingLayer) or not layer.is_initialized or layer.keys.dim() != 4:
            return ()
        keys, values = ((entries.shape[1], entries.shape[3], entries.dtype) for entries in (layer.keys, layer.values))
        shapes.append(LayerShape(keys, values, layer.sliding_window if sliding else None))
    return tuple(shapes)


def _difference(model: Any, layers: tuple[LayerShape, ...]) -> str | None:
    """The reason why static steps cannot replace the usual ones: they differ, or do what a CUDA graph cannot hold."""
    inputs, ids = probe_batch(model)
    usual = run_probe(open_probe_stream(model, inputs, "shared prefix"), ids)
    with optimized_for_decode(model):
        stream = open_probe_stream(model, inputs, "shared prefix", plan=GraphPlan(layers, probing=True))
        with _Watch() as watch:
            static = run_probe(stream, ids)
    if watch.seen is not None:
        return f"its forward() asks for values on the host ({watch.seen})"
    error = max(relative_error(states, expected) for states, expected in zip(static, usual, strict=True))
    if error >= tolerance(model.dtype):
        return f"with storage of a fixed size its outputs differ (relative error {error:.1e})"
    return None


class _Watch(TorchDispatchMode):
    """Notes the first operation whose result the host must know before it can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        if self.seen is None and _asks_the_host(func, args):
            self.seen = str(func)
        return func(*args, **(kwargs or {}))


def _asks_the_host(func: Any, args: Any) -> bool:
    if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten.index_put):
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
