"""Where the parts of a model are: on one device, on several, or kept on the CPU or a disk until they are needed."""

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
    """The device that a model takes tokens on; ``model.device`` is "meta" where its embeddings are offloaded."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    devices = [getattr(each, "execution_device", None) for each in getattr(hook, "hooks", [hook])]
    return next((torch.device(each) for each in devices if each is not None), device)


def device_names(model: nn.Module) -> list[str]:
    """The devices that hold a model's weights, in the order of its layers; "offloaded" for those that none holds."""
    return list(dict.fromkeys("offloaded" if each.is_meta else str(each.device) for each in model.parameters()))


def is_tensor_parallel(model: Any) -> bool:
    """Whether the processes of torchrun hold parts of the model each (tensor parallelism) and must act as one."""
    return (getattr(model, "tp_size", None) or 1) > 1


def is_main_process(model: Any) -> bool:
    """Whether this process prints and writes what a model said: of those that share it, the first does."""
    return not is_tensor_parallel(model) or torch.distributed.get_rank() == 0


def broadcast_from_rank0(model: Any, drawn: Tensor) -> Tensor:
    """What was drawn, or what the first of the processes that share a model drew: each has random numbers of its own,
    and they must go on with the same tokens.
    """
    if is_tensor_parallel(model):
        torch.distributed.broadcast(drawn, group=tensor_parallel_mesh(model).get_group(), group_src=0)
    return drawn


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights are elsewhere until the layer that they belong to runs (accelerate's hooks fetch them)."""
    return any(each.is_meta for each in model.parameters())


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its name, tied ones once, with its numbers, wherever they are kept; one at a time.

    Under tensor parallelism every rank must go through all of them, since the others hold parts of each.
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
                here = module._parameters[name]
                assert here is not None
                whole = here.full_tensor() if hasattr(here, "full_tensor") else here
                yield full, whole


def _fetched(module: nn.Module, weights: Tensor) -> AbstractContextManager[Any]:
    if not weights.is_meta:
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module, "cpu")
