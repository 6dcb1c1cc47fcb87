"""What the tests of all kernels compare with, and how they see that a kernel was not merely interpreted."""

from __future__ import annotations

import torch
from torch import Tensor

# Half-precision inputs are the same numbers for kernel and oracle, but a kernel's products of them may be accumulated
# as tensor cores do it.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-3}


def relative_rmse(value: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference over that of the reference."""
    value, reference = value.double().cpu(), reference.double().cpu()
    return float((value - reference).square().mean().sqrt() / reference.square().mean().sqrt())
