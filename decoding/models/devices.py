"""The devices of a model's weights: one, several, or the CPU or a disk until a weight is needed (offloading)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from decoding.transformers_private import tensor_parallel_mesh

__all__ = [
    "broadcast_from_rank0",
    "device_names",
    "input_device",
    "is_main_process",
    "is_offloaded",
    "is_tensor_parallel",
    "whole_weights",
]


def input_device(model: Any) -> torch.device:
    """The device for a model's input tokens; ``model.device`` is "meta" where its embeddings are offloaded."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    devices = [getattr(part, "execution_device", None) for part in getattr(hook, "hooks", [hook])]
    return next((torch.device(name) for name in devices if name is not None), device)


def device_names(model: nn.Module) -> list[str]:
    """The devices of a model's weights, in the order of its layers; "offloaded" for weights that are on none."""
    return list(dict.fromkeys("offloaded" if weight.is_meta else str(weight.device) for weight in model.parameters()))


def is_tensor_parallel(model: Any) -> bool:
    """True where several processes hold a part of each weight (tensor parallelism) and must make the same calls."""
    return (getattr(model, "tp_size", None) or 1) > 1


def is_main_process(model: Any) -> bool:
    """True for the process that prints and writes results: the first of those that share a model."""
    return not is_tensor_parallel(model) or torch.distributed.get_rank() == 0


def broadcast_from_rank0(model: Any, drawn: Tensor) -> Tensor:
    """Tokens that were drawn at random, replaced by those of the first process where several share a model.

    Each process has its own random numbers, and all must continue with the same tokens.
    """
    if is_tensor_parallel(model):
        torch.distributed.broadcast(drawn, group=tensor_parallel_mesh(model).get_group(), group_src=0)
    return drawn


def is_offloaded(model: nn.Module) -> bool:
    """True where accelerate's hooks fetch some weights only when their layer runs."""
    return any(weight.is_meta for weight in model.parameters())


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's name and whole tensor, one at a time, tied ones once, wherever they are kept.

    Under tensor parallelism every rank must iterate over all of them, since each holds a part of every tensor.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # offloaded, they are no longer one object
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, weights in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if id(weights) in seen or full in tied:
                continue
            seen.add(id(weights))
            with _fetched(module, weights):
                fetched = module._parameters[name]
                assert fetched is not None
                yield full, fetched.full_tensor() if hasattr(fetched, "full_tensor") else fetched


def _fetched(module: nn.Module, weights: Tensor) -> AbstractContextManager[Any]:
    if not weights.is_meta:
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module, "cpu")
