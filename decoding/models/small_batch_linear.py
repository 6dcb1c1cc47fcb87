"""Linear layers over a handful of tokens on a CPU: the matrix product transposed.

A step of these strategies reads 2 to 9 rows where greedy search reads one. For so few rows the CPU's product of
states and transposed weights runs on one core; the product of weights and states runs on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["small_batch_linear"]

# Numbers of rows for which transposing pays: in float32 on two cores, 32000 x 512, 1.4 against 8.7 ms for two rows, 1.9
# against 12.7 for three, 3.8 against 9.4 for nine; 1408 x 512, 0.065 against 0.128 for four, 0.153 against 0.176 for
# nine. With more rows it loses on smaller matrices; one row is a vector, whose product is quick already.
ROWS = range(2, 10)


def small_batch_linear(tokens: int, device: torch.device) -> AbstractContextManager[Any]:
    """Speed up ``torch.nn.functional.linear`` on so few float32 rows of a CPU, in this thread within the context.

    Args:
        tokens: the number of rows of the products to come; outside 2 to 9 nothing changes.
        device: where they are.
    """
    pays = tokens in ROWS and device.type == "cpu" and torch.get_num_threads() > 1
    return TransposedLinear() if pays and not torch.is_grad_enabled() else nullcontext()


class TransposedLinear(TorchFunctionMode):
    """``linear`` computed as weights times states. Modules, their hooks and wrappers are not affected."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # A model that its user has compiled is left to its compiler.
        if func is nn.functional.linear and not kwargs and len(args) >= 2 and not torch.compiler.is_compiling():
            states, weight = args[0], args[1]
            bias = args[2] if len(args) > 2 else None
            if _is_plain(weight) and states.dtype == torch.float32 and states.shape[-1] > 0:
                rows = states.numel() // states.shape[-1]
                if rows in ROWS:
                    return _linear(states.reshape(rows, -1), weight, bias).reshape(*states.shape[:-1], -1)
        return func(*args, **(kwargs or {}))


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.mm(weight, states.T) if bias is None else torch.addmm(bias[:, None], weight, states.T)
    return product.T.contiguous()


def _is_plain(weight: Tensor) -> bool:
    """False for quantised and distributed weights, which have products of their own."""
    return type(weight) in (nn.Parameter, Tensor) and weight.dtype == torch.float32 and weight.device.type == "cpu"
