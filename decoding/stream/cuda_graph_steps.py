"""The decode step of a stream through a static layout: captured once as a CUDA graph, replayed for each token.

A small batch leaves a GPU waiting for its next kernel: a step is several hundred launches. A graph is one. It is
captured for each bucket of the text's length that is met, and layouts with their graphs are kept with the model for its
next call. On a CPU, which has no launches to save, the same static step runs as it is; compiling it with inductor was
tried there and takes 6 to 12 s a bucket on 8 layers of width 512, for milliseconds a token.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from decoding.cache.growing import LOOKAHEAD_SLOTS, GrowingLayer, layers_of
from decoding.errors import ModelError
from decoding.models.adapters import adapter_state
from decoding.models.attention import grouped_heads
from decoding.models.forward_errors import forward_pass
from decoding.models.hooks import collect_inputs
from decoding.models.text_config import text_config
from decoding.stream.output import ForwardOutput
from decoding.stream.state import BatchState
from decoding.stream.static_layout import BranchStep, LayerShape, RowStep, StaticLayout, StaticStep, bucket_of
from decoding.transformers_private import attention_implementation

__all__ = ["CudaGraphSteps", "GraphPlan"]

WARM_UP = 3  # passes before a capture, as torch asks for: libraries set themselves up in the first ones


@dataclass(frozen=True)
class GraphPlan:
    """The way in which the steps of a stream are captured.

    Attributes:
        layers: of the model's cache.
        probing: True in the check of a model: static steps run uncaptured on a GPU too, and attend to two buckets where
            one would do. So far beyond the text's end, a model whose own masks count from the end of its keys
            (GPT-Neo's local attention, 256 tokens wide) attends to nothing and is found out.
    """

    layers: tuple[LayerShape, ...]
    probing: bool = False


class CudaGraphSteps:
    """The static steps of one stream; its cache layers get their storage from here.

    Args:
        state: of the stream, whose prompt is not read yet.
        plan: how its steps are captured.
        max_length: number of tokens that the text may have; None where that is not known.
    """

    def __init__(self, state: BatchState, plan: GraphPlan, max_length: int | None) -> None:
        self._expected = max_length
        self._kinds = plan.layers
        self._probing = plan.probing
        self._stale = True  # the layout does not know yet which slots hold padding
        self._layout: StaticLayout | None = self._take(state, state.input_ids.shape[1])
        cache = state.cache
        cache.layers = [GrowingLayer() for _ in plan.layers]
        self._sync_storage(state)

    def read(self, state: BatchState, tokens: Tensor, positions: Tensor) -> ForwardOutput:
        """Read tokens after those that the stream has kept, and count them in its cache.

        Args:
            state: of the stream.
            tokens: (batch, branches, n).
            positions: (batch, n) of the tokens of every branch.

        Returns:
            ``hidden`` and exits are (batch, branches·n, dim).
        """
        branches, n = tokens.shape[1:]
        start, end = state.length, state.length + branches * n
        layout = self._prepared(state, end)
        bucket = layout.capacity if self._probing else bucket_of(end)
        step = self._step(
            state, ("branches", branches, n, bucket), lambda *given: BranchStep(layout, branches, n, bucket, *given)
        )
        step.tokens.copy_(tokens.flatten(1))
        step.positions.unflatten(1, (branches, n)).copy_(positions[:, None])
        layout.length.fill_(start)
        return self._read(state, layout, step, end)

    def read_rows(
        self, state: BatchState, tokens: Tensor, positions: Tensor, slots: Tensor, places: Tensor, width: int
    ) -> ForwardOutput:
        """Read tokens of rows with lengths of their own, and count them in the stream's cache.

        Args:
            state: of the stream; its length is that of the longest row.
            tokens: (batch, n).
            positions: likewise.
            slots: likewise, where their keys and values go.
            places: likewise, how many slots of its row each of them follows.
            width: slots of the longest row afterwards.

        Returns:
            ``hidden`` and exits are (batch, n, dim).
        """
        n = tokens.shape[1]
        layout, bucket = self._prepared(state, width), bucket_of(width)
        step = self._step(state, ("rows", n, bucket), lambda *given: RowStep(layout, n, bucket, *given))
        for held, given in (
            (step.tokens, tokens), (step.positions, positions), (step.slots, slots), (step.places, places),
        ):  # fmt: skip
            held.copy_(given)
        return self._read(state, layout, step, width)

    def keep(self, state: BatchState, num_branch_tokens: int, slots: Tensor) -> None:
        """Keep the slots (batch, n) of each row, of the ``num_branch_tokens`` tokens read last, in place."""
        assert self._layout is not None
        self._sync_storage(state)  # rows may have been reordered between the branch and its commit
        self._layout.keep(state.length, num_branch_tokens, slots)
        for layer in layers_of(state.cache):
            layer.crop(slots.shape[1] - num_branch_tokens)

    def forget(self) -> None:
        """Note that the stream's slots changed otherwise than by a step: which of them hold padding is read again."""
        self._stale = True

    def hand_over(self, cache: Any) -> None:
        """Copy the cache out of the layout; layers with a window become the kind of layer that they are elsewhere."""
        for index, (layer, kind) in enumerate(zip(layers_of(cache), self._kinds, strict=True)):
            if kind.window is None:
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
                continue
            sliding = DynamicSlidingWindowLayer(kind.window)
            sliding.lazy_initialization(layer.keys, layer.values)
            sliding.keys = layer.keys[:, :, -kind.window + 1 :].clone()
            sliding.values = layer.values[:, :, -kind.window + 1 :].clone()
            sliding.cumulative_length = layer.length
            cache.layers[index] = sliding

    def release(self, model: Any) -> None:
        """Keep the layout with the model for its next call."""
        layout, self._layout = self._layout, None
        if layout is not None:
            _give_back(model, layout)

    def _take(self, state: BatchState, needed: int) -> StaticLayout:
        """A layout with capacity for the call's tokens; where their number is not known, for as many again."""
        capacity = max(needed, self._expected or 2 * needed, bucket_of(1) if self._probing else 0) + LOOKAHEAD_SLOTS
        return _take(state.model, self._kinds, state.batch, bucket_of(capacity), state.input_ids.device)

    def _sync_storage(self, state: BatchState) -> None:
        """Move the cache's content back to the layout's storage, where something (a reordering) replaced it."""
        assert self._layout is not None
        layers = layers_of(state.cache)
        moved = [layer.rebind_storage(*storage) for layer, storage in zip(layers, self._layout.storage, strict=True)]
        self._stale |= any(moved)

    def _mark_padding(self, state: BatchState, length: int) -> None:
        if self._stale:
            assert self._layout is not None
            present, mask = self._layout.present, state.padding_mask
            present.fill_(True)
            if state.padded and mask is not None:
                present[:, :length].copy_(mask[:, :length] != 0)
            self._stale = False

    def _prepared(self, state: BatchState, end: int) -> StaticLayout:
        """The layout, with room for slots up to ``end``, what the cache holds in it and its padding marked."""
        assert self._layout is not None
        if end > self._layout.capacity:
            self._layout = self._take(state, end)
        self._sync_storage(state)
        self._mark_padding(state, state.length)
        return self._layout

    def _step(self, state: BatchState, shape: tuple[Any, ...], make: Callable[..., Any]) -> Any:
        """The step of a shape, made with (dtype, layer types) where there is none yet."""
        assert self._layout is not None
        variants = state.passes.variants
        kind = None if variants is None else variants.key
        dtype = state.dtype
        key = (*shape, state.passes.exits, kind, dtype)
        steps = self._layout.steps
        if key not in steps:
            steps[key] = make(dtype, getattr(text_config(state.model), "layer_types", None))
        return steps[key]

    def _read(self, state: BatchState, layout: StaticLayout, step: StaticStep, end: int) -> ForwardOutput:
        hidden, *exits = self._run(state, layout, step)
        for layer in layers_of(state.cache):
            layer.mark_written(end - state.length)
        return ForwardOutput(hidden, exits=tuple(exits))

    def _run(self, state: BatchState, layout: StaticLayout, step: StaticStep) -> list[Tensor]:
        """Hidden states (batch, flat, dim), and those of each exit."""

        def forward() -> list[Tensor]:
            few = state.passes.linear_layers.quickest(step.tokens.numel(), layout.device)
            exit_states = collect_inputs(state.passes.exit_layers)
            with state.passes.adapters(), grouped_heads(), few, exit_states as exits:
                output = state.structure.forward_backbone(state.model, step.inputs(layout))
            return [output.last_hidden_state, *exits]

        rows, tokens = step.tokens.shape
        with forward_pass(state.model, rows, tokens, state.length):
            if not GRAPHS.get(layout.device.type) or self._probing:
                return forward()
            if step.graph is None:
                step.graph = GRAPHS[layout.device.type](forward, layout, type(state.model).__name__)
        return [output.clone() for output in step.graph.replay()]  # the next replay writes over them


class CudaGraph:
    """A captured forward pass.

    Args:
        forward: reads and writes static tensors; what it returns stays at its place too.
        layout: whose graphs share one memory pool: they run one after the other, and what they return is copied at
            once.
        name: of the model, for messages.

    Raises:
        ModelError: the pass cannot be captured.
    """

    def __init__(self, forward: Callable[[], list[Tensor]], layout: StaticLayout, name: str) -> None:
        with _capturing, torch.cuda.device(layout.device):
            if layout.capture is None:
                layout.capture = (torch.cuda.Stream(layout.device), torch.cuda.graph_pool_handle())
            side, pool = layout.capture
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):  # writes the same to the same slots each time, as the first replay will
                    forward()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may go on allocating meanwhile; under the default mode that would break the capture.
                with torch.cuda.graph(self._graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    self._outputs = forward()
            except RuntimeError as error:
                raise ModelError(
                    f"compile=True: {name}'s step cannot be captured as a CUDA graph "
                    f"({' '.join(str(error).split())[:160]}); leave compile out"
                ) from error

    def replay(self) -> list[Tensor]:
        """Run the pass on what its static inputs hold now."""
        self._graph.replay()
        return self._outputs


GRAPHS: dict[str, Callable[..., Any]] = {"cuda": CudaGraph}
"""The class that captures a step, by type of device; on others static steps run as they are."""


# --- layouts between calls -------------------------------------------------------------------------------------------

# Layouts that no stream holds. A layout holds no reference to its model, so it goes when the model goes.
_idle: weakref.WeakKeyDictionary[Any, list[StaticLayout]] = weakref.WeakKeyDictionary()
_pooling = threading.Lock()
_capturing = threading.Lock()


def _take(model: Any, kinds: Sequence[LayerShape], batch: int, capacity: int, device: torch.device) -> StaticLayout:
    """A layout of an earlier call that fits, or a new one, for which those that do not fit are let go first."""
    state = _state(model)
    with _pooling:
        idle = _idle.setdefault(model, [])
        fitting = [
            layout
            for layout in idle
            if (layout.state, layout.layers, layout.batch) == (state, kinds, batch)
            and capacity <= layout.capacity <= 2 * capacity
        ]
        if fitting:
            layout = min(fitting, key=lambda candidate: candidate.capacity)
            idle.remove(layout)
        else:
            idle.clear()
    if fitting:
        layout.clear()
        return layout
    return StaticLayout(kinds, batch, capacity, device, state)


def _give_back(model: Any, layout: StaticLayout) -> None:
    with _pooling:
        _idle.setdefault(model, []).append(layout)


def _state(model: Any) -> tuple[Any, ...]:
    """Everything that a model's graph is captured with: the addresses of its weights, its adapters, its attention.

    Weights that are changed in place are read again at each replay.
    """
    addresses = tuple(tensor.data_ptr() for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    return addresses, adapter_state(model), attention_implementation(model)
