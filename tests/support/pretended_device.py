"""A second device on a machine that has one: tensors that say they are elsewhere, and refuse to be mixed as real ones.

Their numbers are kept on the CPU and computed there; what an operation is given must be in one place, but for what
torch lets pass between any two devices (numbers without dimensions, indices on the CPU, copies).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing

ELSEWHERE = torch.device("lazy", 0)  # a type of device that torch indexes without having it
CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor)


class Elsewhere(Tensor):
    """A tensor on the pretended device."""

    kept: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # what steps in is below: at operations

    @staticmethod
    def __new__(cls, real: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=ELSEWHERE, requires_grad=real.requires_grad,
        )  # fmt: skip
        made.kept = real
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.kept})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Tensors that are made elsewhere from nothing, or from those on the CPU."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; to keep dynamo out would cost time at every operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return _computed(func, args, kwargs) if Elsewhere in types or _is_elsewhere(kwargs) else func(*args, **kwargs)


def _literal(make: Any) -> Any:
    """``torch.tensor``, which asks a device for memory before anything can step in."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Tensor:
        return Elsewhere(make(*args, **{**kwargs, "device": CPU})) if _is_elsewhere(kwargs) else make(*args, **kwargs)

    return made


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Within this context there is a device beside the CPU."""
    _device_constructors()  # is kept as it is first seen: with torch's own function, which `torch.device` steps in on
    with _Factories(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", _literal(torch.tensor))
        yield ELSEWHERE


def without_it() -> Any:
    """A context within :func:`pretended_device` in which there is the CPU alone, and nothing steps in."""
    return _disable_current_modes()


def spread(model: Any, *elsewhere: str) -> Any:
    """Put the modules of these names elsewhere, and hooks on all blocks that move along what they are given, as
    accelerate's ``dispatch_model`` does for a model spread over GPUs.
    """
    decoder = model.get_decoder()
    blocks = [
        block for child in decoder.children() for block in (child if isinstance(child, nn.ModuleList) else [child])
    ]
    blocks.append(model.get_output_embeddings())
    there = [model.get_submodule(name) for name in elsewhere]
    for block in blocks:
        device = ELSEWHERE if block in there else CPU
        if block in there:
            _move(block)
        add_hook_to_module(block, AlignDevicesHook(device, place_submodules=True))
    add_hook_to_module(model, AlignDevicesHook(CPU, io_same_device=True, place_submodules=False))
    return model


def _move(module: nn.Module) -> None:
    for part in module.modules():
        for name, weights in part._parameters.items():
            if weights is not None and not isinstance(weights, Elsewhere):
                part._parameters[name] = nn.Parameter(Elsewhere(weights.data), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, Elsewhere):
                part._buffers[name] = Elsewhere(buffer)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    # Walked by hand: torch's own pytrees take four times as long as all the rest, at 10,000 operations a text.
    tensors: list[Tensor] = []
    _collect((args, kwargs), tensors)
    if _is_elsewhere(kwargs):
        where, kwargs = ELSEWHERE, {**kwargs, "device": CPU}
    elif kwargs.get("device") is not None:
        where = CPU
    elif func is aten.copy_.default:
        where = args[0].device
    elif func in INDEXED:
        where = args[0].device
        indices = [index for index in args[1] if index is not None and index.device != CPU]
        _same_place(func, [args[0], *indices, *args[2:3]])
    else:
        where = _same_place(func, tensors)
    real = func(*_real(args), **_real(kwargs))
    if where != ELSEWHERE:
        return real
    wrapped = _wrapped(real)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if _aliases(func) else wrapped


@functools.cache
def _aliases(func: Any) -> bool:
    """Whether an operation returns or changes memory of what it is given."""
    return any(value.alias_info is not None for value in (*func._schema.arguments, *func._schema.returns))


def _is_elsewhere(kwargs: dict[str, Any]) -> bool:
    """Whether an operation is asked for a tensor on the pretended device."""
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == ELSEWHERE.type


def _collect(value: Any, tensors: list[Tensor]) -> None:
    """Append the tensors of nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        tensors.append(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _collect(item, tensors)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, tensors)


def _real(value: Any) -> Any:
    """The same with the kept tensors in place of those elsewhere."""
    if isinstance(value, Elsewhere):
        return value.kept
    if type(value) in (tuple, list):
        return type(value)(map(_real, value))
    if type(value) is dict:
        return {key: _real(item) for key, item in value.items()}
    return value


def _wrapped(value: Any) -> Any:
    """The same with each tensor put elsewhere."""
    if isinstance(value, Tensor):
        return Elsewhere(value)
    return type(value)(map(_wrapped, value)) if type(value) in (tuple, list) else value


def _same_place(func: Any, tensors: list[Tensor]) -> torch.device:
    places = {tensor.device for tensor in tensors if tensor.dim() > 0}
    if len(places) > 1:
        raise RuntimeError(f"{func}: expected all tensors on one device, found {sorted(map(str, places))}")
    return next(iter(places), tensors[0].device if tensors else CPU)
