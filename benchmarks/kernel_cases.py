"""The operations that ``kernel_forms.py`` measures, each at sizes of real models.

``before`` is what transformers 4.55.4, the last release with these strategies in its core, did for the same step: the
same operations in the same order, written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.kernels.degeneration_penalty import append, degeneration_penalty, inverse_norms
from decoding.kernels.selection import select

__all__ = ["OPERATIONS", "Forms", "Operation"]

Size = dict[str, int]


@dataclass(frozen=True)
class Forms:
    """One operation at one size.

    Attributes:
        triton: the kernel; gives what is compared with that of ``torch``.
        torch: its torch form.
        before: as transformers 4.55.4 had it, where it had it.
        moved: bytes that have to be read and written at least.
    """

    triton: Callable[[], Tensor]
    torch: Callable[[], Tensor]
    moved: int
    before: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Operation:
    """An operation: ``build(device, dtype, **size)`` makes its inputs; ``small`` is a size for a CPU."""

    name: str
    build: Callable[..., Forms]
    sizes: Sequence[Size]
    small: Size


OPERATIONS: list[Operation] = []


def operation(name: str, sizes: Sequence[Size], small: Size) -> Callable[[Callable[..., Forms]], Callable[..., Forms]]:
    """Register the function under it."""

    def register(build: Callable[..., Forms]) -> Callable[..., Forms]:
        OPERATIONS.append(Operation(name, build, sizes, small))
        return build

    return register


# A history of 8, 67, 268 and 537 MB, a wide k, and the longest context.
HISTORIES = (
    {"B": 1, "K": 5, "S": 1024, "D": 4096},
    {"B": 1, "K": 5, "S": 8192, "D": 4096},
    {"B": 1, "K": 5, "S": 32768, "D": 4096},
    {"B": 8, "K": 5, "S": 8192, "D": 4096},
    {"B": 1, "K": 64, "S": 32768, "D": 4096},
    {"B": 1, "K": 5, "S": 131072, "D": 4096},
)
SMALL_HISTORY = {"B": 2, "K": 5, "S": 100, "D": 96}


@operation("degeneration penalty", HISTORIES, SMALL_HISTORY)
def penalty(device: str, dtype: torch.dtype, B: int, K: int, S: int, D: int) -> Forms:
    """Candidates against the history; 4.55.4 repeats the history K times and normalises it anew."""
    candidates, history, norms = _history(device, dtype, B, K, S, D)

    def form(backend: str) -> Tensor:
        return degeneration_penalty(candidates, history, norms, length=S, backend=backend)

    def before() -> Tensor:
        context = history[:, :S].repeat_interleave(K, dim=0)
        context = context / context.norm(dim=2, keepdim=True)
        looked_at = candidates.flatten(0, 1)[:, None]
        looked_at = looked_at / looked_at.norm(dim=2, keepdim=True)
        return torch.matmul(context, looked_at.transpose(1, 2))[:, :, 0].amax(-1)

    moved = B * S * (D * dtype.itemsize + 4) + candidates.numel() * dtype.itemsize
    return Forms(lambda: form("triton"), lambda: form("torch"), moved, before)


@operation("selection", HISTORIES[:4], SMALL_HISTORY)
def selection(device: str, dtype: torch.dtype, B: int, K: int, S: int, D: int) -> Forms:
    """From the candidates' hidden states to their tokens, the penalty included; gives the tokens' scores."""
    candidates, history, norms = _history(device, dtype, B, K, S, D)
    logits = torch.randn(B, 32000, device=device)
    probabilities, ids = logits.softmax(-1).topk(K)

    def form(backend: str) -> Tensor:
        return select(logits, probabilities, ids, 0.6, candidates, history, norms, None, S, backend).score

    moved = B * S * (D * dtype.itemsize + 4) + candidates.numel() * dtype.itemsize
    return Forms(lambda: form("triton"), lambda: form("torch"), moved)


@operation(
    "history append", [{"B": 1, "S": 8192, "D": 4096}, {"B": 8, "S": 8192, "D": 4096}], {"B": 2, "S": 9, "D": 33}
)
def appended(device: str, dtype: torch.dtype, B: int, S: int, D: int) -> Forms:
    """One state a row behind S others; 4.55.4 copies all of them."""
    hidden, history, norms = _history(device, dtype, B, 1, S, D)

    def form(backend: str) -> Tensor:
        append(history, norms, hidden, S, backend)
        return norms[:, S]

    return Forms(
        lambda: form("triton"),
        lambda: form("torch"),
        2 * hidden.numel() * dtype.itemsize + 4 * B,
        lambda: torch.cat([history[:, :S], hidden], dim=1),
    )


def _history(device: str, dtype: torch.dtype, B: int, K: int, S: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates, history with room for one more slot, and its inverse norms."""
    candidates = torch.randn(B, K, D, device=device, dtype=dtype)
    history = torch.randn(B, S + 1, D, device=device, dtype=dtype)
    return candidates, history, inverse_norms(history)
