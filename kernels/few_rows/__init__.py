"""The product of a few rows with the weights of a linear layer on a CPU, compiled in C where a compiler is at hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from decoding.kernels.few_rows.building import built, why_not_compiled
from decoding.kernels.few_rows.naive import few_row_product_naive

__all__ = ["few_row_product", "few_row_product_naive", "why_not_compiled"]


def few_row_product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute states·weightᵀ + bias in the time that reading the weights once takes.

    The weights are read as they lie, and what comes next is asked for ahead; torch's own product of two rows or more
    takes longer than memory does. An output is the same whatever the other rows are and however many threads compute
    it. Tensors of another kind than those below get torch's own product, and so do the passes within a
    ``TorchDispatchMode``. Autograd sees nothing of it.

    Args:
        states: (..., inputs), float32 on a CPU, contiguous.
        weight: (outputs, inputs), float32, contiguous.
        bias: (outputs,), float32.

    Returns:
        (..., outputs), float32.

    Raises:
        BuildError: there is no compiled kernel here; see :func:`why_not_compiled`.
    """
    kernel = built()
    *leading, inputs = states.shape
    outputs, width = weight.shape
    fit = inputs == width > 0 and (bias is None or (_is_plain(bias) and bias.shape == (outputs,)))
    # What watches torch's operations, or records them to run them again, would not see the kernel.
    if not (fit and _is_plain(states) and _is_plain(weight)) or _get_current_dispatch_mode() is not None:
        return torch.nn.functional.linear(states, weight, bias)
    out = states.new_empty((*leading, outputs))
    kernel(
        states.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(),
        states.numel() // inputs, outputs, inputs, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()
