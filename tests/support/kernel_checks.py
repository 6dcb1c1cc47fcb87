"""Inputs, comparisons and ids that the tests of several kernels share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

# Half-precision inputs are the same numbers for kernel and oracle, but a kernel's products of them may be accumulated
# as tensor cores do it.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-3}
# Of kernels over the vocabulary, in every dtype: without products of half-precision inputs, only the rounding of
# float32 sums is left.
VOCABULARY_TOLERANCE = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GAP = 13  # elements between two rows of logits, so that their stride is odd


def relative_rmse(value: Tensor, reference: Tensor) -> float:
    """Compute the root mean square of the difference over that of the reference."""
    value, reference = value.double().cpu(), reference.double().cpu()
    return float((value - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def assert_equals_definition(value: Tensor, definition: Tensor) -> None:
    """Check for float32 with the definition's infinities at the same places, and its numbers everywhere else."""
    assert value.dtype == torch.float32
    finite = definition.isfinite()
    assert torch.equal(value[~finite], definition[~finite].float())
    error = (value - definition)[finite].square().mean().sqrt()
    assert float(error / definition[finite].square().mean().sqrt()) < VOCABULARY_TOLERANCE


def draw_logits(*shape: int, generator: torch.Generator, scale: float = 3.0) -> Tensor:
    """Draw logits (..., vocab) as (..., vocab + GAP): after each row comes a gap of NaN."""
    *rows, vocab = shape
    logits = torch.full((*rows, vocab + GAP), torch.nan)
    logits[..., :vocab] = scale * torch.randn(*rows, vocab, generator=generator) - 20
    return logits


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what ``torch.empty`` returns with NaN, or with -1 for integers."""
    empty = torch.empty

    def poisoned(*size: int, dtype: torch.dtype, **options: object) -> Tensor:
        return empty(*size, dtype=dtype, **options).fill_(torch.nan if dtype.is_floating_point else -1)

    monkeypatch.setattr(torch, "empty", poisoned)


def dtype_id(dtype: torch.dtype) -> str:
    """Name a dtype in a test's id, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def shape_id(letters: str, shape: Sequence[int]) -> str:
    """Name the sizes of a test's shape by letters, such as "B2-K5-S33-D48"."""
    return "-".join(f"{letter}{size}" for letter, size in zip(letters, shape, strict=True))


def logits_id(shape: tuple[int, ...] | torch.dtype | str) -> str:
    """Name (batch, (time,) vocab, layers) in a test's id, such as "B2xT3-V130-N2"; or a dtype, or what has a name."""
    if isinstance(shape, str):
        return shape
    if isinstance(shape, torch.dtype):
        return dtype_id(shape)
    *rows, vocab, layers = shape
    return f"B{'xT'.join(map(str, rows))}-V{vocab}-N{layers}"
