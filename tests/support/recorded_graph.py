"""A CUDA graph for machines without CUDA: records the operations of a pass and runs these again, Python left out.

As in a CUDA graph, whatever was a number on the host when the pass was recorded stays that number, and whatever was a
tensor is read from and written to where it was then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph:
    """Stands in for ``decoding.stream.cuda_graph_steps.CudaGraph``."""

    made = 0

    def __init__(self, forward: Callable[[], list[Tensor]], layout: Any, name: str) -> None:
        type(self).made += 1
        forward()  # warm-up
        with _Recorder() as recorder:
            self._outputs = forward()
        self._tape = recorder.tape

    def replay(self) -> list[Tensor]:
        with torch.inference_mode():  # which may write to every tensor
            for operation, args, kwargs, results in self._tape:
                again = tree_leaves(operation(*args, **kwargs))
                for then, now in zip(results, again, strict=True):
                    if isinstance(then, Tensor) and then.numel() and then.data_ptr() != now.data_ptr():
                        then.copy_(now)
        return self._outputs


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, tree_leaves(result)))
        return result
