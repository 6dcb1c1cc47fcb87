"""A CUDA graph for machines without CUDA: records the operations of a pass, and replays them without its Python code.

As in a CUDA graph, a number on the host keeps the value that it had at the recording, and a tensor is read and written
at the address that it had then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph:
    """Stand-in for ``decoding.stream.cuda_graph_steps.CudaGraph``; ``made`` counts the recordings."""

    made = 0

    def __init__(self, forward: Callable[[], list[Tensor]], layout: Any, name: str) -> None:
        type(self).made += 1
        forward()  # warm-up
        with _Recorder() as recorder:
            self._outputs = forward()
        self._tape = recorder.tape

    def replay(self) -> list[Tensor]:
        """Run the recorded operations again, and return the recorded outputs with the new results in them."""
        with torch.inference_mode():  # which may write to every tensor
            for operation, args, kwargs, results in self._tape:
                replayed = tree_leaves(operation(*args, **kwargs))
                for recorded, result in zip(results, replayed, strict=True):
                    if isinstance(recorded, Tensor) and recorded.numel() and recorded.data_ptr() != result.data_ptr():
                        recorded.copy_(result)
        return self._outputs


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, tree_leaves(result)))
        return result
