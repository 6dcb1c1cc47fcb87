"""Inputs and outputs of modules in a forward pass of this thread, and the calls between two of its tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "NO_KEYWORDS",
    "Call",
    "chained",
    "collect_inputs",
    "collect_outputs",
    "given_tensor",
    "recorded_calls",
    "same",
]

# The keywords of a hook that another thread calls while this one removes it: torch then passes none.
NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: the module.
        given: the first tensor among its inputs; None where there was none.
        output: its output; None while it runs.
        returned: the first tensor of the output.
    """

    module: nn.Module
    given: Tensor | None
    output: Any = field(default=None, repr=False)

    @property
    def returned(self) -> Tensor | None:
        """The output itself, or the first of its parts."""
        first = self.output[0] if isinstance(self.output, (tuple, list)) and self.output else self.output
        return first if isinstance(first, Tensor) else None


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[list[Call]]:
    """Collect the calls of all modules in this thread within the context, a caller before the modules that it calls."""
    calls: list[Call] = []
    running: list[Call] = []
    thread = threading.get_ident()

    def enter(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any] = NO_KEYWORDS) -> None:
        if threading.get_ident() == thread:
            calls.append(Call(module, given_tensor(inputs, named)))
            running.append(calls[-1])

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            running.pop().output = output

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def collect_outputs(module: nn.Module, part: Callable[[Any], Any] = lambda output: output) -> Iterator[list[Any]]:
    """Collect the outputs of ``module`` in this thread within the context, or a part of each."""
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
def collect_inputs(layers: Sequence[nn.Module], last: bool = False) -> Iterator[list[Tensor]]:
    """Collect the inputs (batch, n, dim) of layers in this thread within the context.

    Args:
        layers: decoder layers, in order.
        last: True for the last token's states only, (batch, 1, dim).
    """
    states: list[Tensor] = []
    thread = threading.get_ident()

    def keep(_module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any] = NO_KEYWORDS) -> None:
        if threading.get_ident() == thread:
            hidden = given_tensor(inputs, named)
            if hidden is not None:
                states.append(hidden[:, -1:].clone() if last else hidden)  # a view would keep the rest

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def given_tensor(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """The first tensor among a module's inputs."""
    first = inputs[0] if inputs else named.get("hidden_states")
    return first if isinstance(first, Tensor) else None


def chained(calls: Sequence[Call], start: Tensor, end: Tensor | None = None) -> list[Call] | None:
    """The calls that lead on from ``start``, each with the output of the one before as its input.

    Args:
        calls: calls in order.
        start: a tensor of the pass.
        end: the output of the last call; None follows ``start`` to its end.

    Returns:
        The outermost calls that change it, in order; None where ``end`` is not reached.
    """
    chain: list[Call] = []
    state = start
    while end is None or not same(state, end):
        step = next((call for call in calls if same(call.given, state) and not same(call.returned, state)), None)
        if step is None or step.returned is None:
            return chain if end is None else None
        chain.append(step)
        state = step.returned
        calls = calls[calls.index(step) + 1 :]
    return chain


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """True where two tensors hold the same values, on whatever devices."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return one is other or torch.equal(one, other.to(one.device, one.dtype))
