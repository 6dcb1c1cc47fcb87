"""The decode step of a stream through a static layout: captured once as a CUDA graph, replayed for each token.

A small batch leaves a GPU waiting for its next kernel: a step is several hundred launches. A graph is one. It is
captured for each bucket of the text's length that is met, and layouts with their graphs are kept with the model for its
next call. On a CPU, which has no launches to save, the same static step runs as it is; compiling it with inductor was
tried there and takes 6 to 12 s a bucket on 8 layers of width 512, for milliseconds a token.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from decoding.cache.growing import LOOKAHEAD_SLOTS, GrowingLayer, layers_of
from decoding.capabilities.cuda_graphs import check_cuda_graphs
from decoding.errors import ModelError
from decoding.models.adapters import adapter_state
from decoding.models.attention import grouped_heads
from decoding.models.forward_errors import forward_pass
from decoding.models.hooks import collect_inputs
from decoding.models.small_batch_linear import small_batch_linear
from decoding.stream.output import ForwardOutput
from decoding.stream.static_layout import LayerShape, StaticLayout, StaticStep, bucket_of
from decoding.transformers_private import attention_implementation

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from decoding.stream.stream import Stream

__all__ = ["CudaGraphSteps", "probing"]

WARM_UP = 3  # passes before a capture, as torch asks for: libraries set themselves up in the first ones

_probing: ContextVar[bool] = ContextVar("decoding_probing", default=False)


@contextmanager
def probing() -> Iterator[None]:
    """Within this context static steps run uncaptured on a GPU too, and look at two buckets where one would do.

    So far behind the text's end, a model whose own masks count from the end of its keys (GPT-Neo's local attention, 256
    tokens wide) sees nothing and is found out.
    """
    token = _probing.set(True)
    try:
        yield
    finally:
        _probing.reset(token)


class CudaGraphSteps:
    """The static steps of one stream, which lends its cache layers their storage.

    Args:
        stream: whose model, adapters and exits are known; its prompt is not read yet.
        generation_config: of the call.

    Raises:
        OptionError: the call or the model cannot be captured; says why.
    """

    def __init__(self, stream: Stream, generation_config: GenerationConfig) -> None:
        kinds = check_cuda_graphs(stream.model, stream.kwargs, generation_config, stream.passes.mixed)
        self._expected = generation_config.max_length
        self._kinds = kinds
        self._stale = True  # whether the layout does not know yet which slots hold padding
        self._layout: StaticLayout | None = self._take(stream, stream.input_ids.shape[1])
        cache = stream.cache
        cache.layers = [GrowingLayer() for _ in kinds]
        self._sync_storage(stream)

    def read(self, stream: Stream, tokens: Tensor, positions: Tensor) -> ForwardOutput:
        """Read tokens behind what the stream has kept, and count them in its cache.

        Args:
            stream: the stream.
            tokens: (batch, branches, n).
            positions: (batch, n) of the tokens of every branch.

        Returns:
            ``hidden`` and exits are (batch, branches·n, dim).
        """
        branches, n = tokens.shape[1:]
        start, end = stream.length, stream.length + branches * n
        assert self._layout is not None
        if end > self._layout.capacity:
            self._layout = self._take(stream, end)
        self._sync_storage(stream)
        self._mark_padding(stream, start)
        step = self._step(stream, branches, n, self._layout.capacity if _probing.get() else bucket_of(end))
        step.tokens.copy_(tokens.flatten(1))
        step.positions.unflatten(1, (branches, n)).copy_(positions[:, None])
        self._layout.length.fill_(start)
        hidden, *exits = self._run(stream, self._layout, step)
        for layer in layers_of(stream.cache):
            layer.mark_written(branches * n)
        return ForwardOutput(hidden, exits=tuple(exits))

    def keep(self, stream: Stream, num_branch_tokens: int, slots: Tensor) -> None:
        """Of the ``looked_at`` tokens read last, keep those of (batch, n) each row, in place."""
        assert self._layout is not None
        self._sync_storage(stream)  # rows may have been reordered between the branch and its commit
        self._layout.keep(stream.length, num_branch_tokens, slots)
        for layer in layers_of(stream.cache):
            layer.crop(slots.shape[1] - num_branch_tokens)

    def forget(self) -> None:
        """The stream's slots changed otherwise than by a step: look anew which of them hold padding."""
        self._stale = True

    def hand_over(self, cache: Any) -> None:
        """Give the cache storage of its own, and layers with a window the kind of layer that they have elsewhere."""
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

    def _take(self, stream: Stream, needed: int) -> StaticLayout:
        """A layout with room for what the call may make; where that is not known, for as much again."""
        room = max(needed, self._expected or 2 * needed, bucket_of(1) if _probing.get() else 0) + LOOKAHEAD_SLOTS
        return _take(stream.model, self._kinds, stream.batch, bucket_of(room), stream.input_ids.device)

    def _sync_storage(self, stream: Stream) -> None:
        """Bring the cache's content to the layout's storage, where something (a reordering) took it elsewhere."""
        assert self._layout is not None
        layers = layers_of(stream.cache)
        moved = [layer.rebind_storage(*own) for layer, own in zip(layers, self._layout.storage, strict=True)]
        self._stale |= any(moved)

    def _mark_padding(self, stream: Stream, length: int) -> None:
        if self._stale:
            assert self._layout is not None
            present, mask = self._layout.present, stream.padding_mask
            present.fill_(True)
            if stream.padded and mask is not None:
                present[:, :length].copy_(mask[:, :length] != 0)
            self._stale = False

    def _step(self, stream: Stream, branches: int, n: int, bucket: int) -> StaticStep:
        assert self._layout is not None
        mixed = stream.passes.mixed
        names = None if mixed is None else tuple(mixed.names)
        dtype = stream.prompt.hidden.dtype
        key = (branches, n, bucket, stream.passes.exits, names, dtype)
        steps = self._layout.steps
        if key not in steps:
            types = getattr(stream.model.config.get_text_config(decoder=True), "layer_types", None)
            steps[key] = StaticStep(self._layout, branches, n, bucket, dtype, types)
        return steps[key]

    def _run(self, stream: Stream, layout: StaticLayout, step: StaticStep) -> list[Tensor]:
        """Hidden states (batch, flat, dim), and those of each exit."""

        def forward() -> list[Tensor]:
            few = small_batch_linear(step.tokens.numel(), layout.device)
            with grouped_heads(), few, collect_inputs(stream.passes.exit_layers) as exits:
                output = stream.structure.forward_backbone(stream.model, step.inputs(layout))
            return [output.last_hidden_state, *exits]

        rows, tokens = step.tokens.shape
        with forward_pass(stream.model, rows, tokens, stream.length), stream.passes.adapters():
            if not GRAPHS.get(layout.device.type) or _probing.get():
                return forward()
            if step.graph is None:
                step.graph = GRAPHS[layout.device.type](forward, layout, type(stream.model).__name__)
        return [each.clone() for each in step.graph.replay()]  # the next replay writes over them


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
"""What captures a step, by type of device; on others static steps run as they are."""


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
            each
            for each in idle
            if (each.state, each.layers, each.batch) == (state, kinds, batch)
            and capacity <= each.capacity <= 2 * capacity
        ]
        if fitting:
            layout = min(fitting, key=lambda each: each.capacity)
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
    """What a graph of a model is captured with: where its weights lie, its adapters, its attention.

    Weights that are changed in place are read anew at each replay.
    """
    addresses = tuple(each.data_ptr() for tensors in (model.parameters(), model.buffers()) for each in tensors)
    return addresses, adapter_state(model), attention_implementation(model)
