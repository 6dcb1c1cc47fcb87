"""The softmax statistics of one row, from blocks that different programs read: what the vocabulary-wide kernels share.

A block gives (max, Σ exp(x - max), Σ exp(x - max)·(x - max)); the blocks of a row together give its maximum, its
log-sum-exp and the entropy of its softmax, so that each row is read once for all three.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["block_size", "block_statistics", "row_statistics", "rows_of", "warps"]

# Two programs for each of the 132 multiprocessors of an H100; blocks smaller than 1024 would have more statistics to
# read than logits.
PROGRAMS = 264
SMALLEST_BLOCK, LARGEST_BLOCK = 1024, 4096


def block_size(vocab: int, rows: int) -> int:
    """Elements of a row that one program reads: so many that the blocks of all rows fill a GPU, at one row too."""
    block = LARGEST_BLOCK
    while block > SMALLEST_BLOCK and rows * triton.cdiv(vocab, block) < PROGRAMS:
        block //= 2
    return block


def warps(block: int) -> int:
    """Warps of a program with a block of so many elements: 8 to 16 elements a thread."""
    return 8 if block > 2048 else 4


def rows_of(logits: Tensor, leading: int = 1) -> Tensor:
    """Logits (..., vocab) as (rows, vocab), or with ``leading=2`` (n, ..., vocab) as (n, rows, vocab).

    A view where strides allow it; the last dimension is contiguous.
    """
    rows = logits.reshape(*logits.shape[: leading - 1], -1, logits.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@triton.jit
def block_statistics(x):
    """(max, Σ exp(x - max), Σ exp(x - max)·(x - max)) of a block of logits; -inf adds nothing."""
    top = tl.max(x, 0)
    below = tl.where(x == float("-inf"), 0.0, x - top)
    share = tl.where(x == float("-inf"), 0.0, tl.exp(below))
    return top, tl.sum(share, 0), tl.sum(share * below, 0)


@triton.jit
def row_statistics(partials, blocks, BLOCKS: tl.constexpr):
    """(max, log-sum-exp, entropy) of a row, from its blocks' statistics at ``partials``: (3, blocks) float32."""
    block = tl.arange(0, BLOCKS)
    tops = tl.load(partials + block, mask=block < blocks, other=float("-inf"))
    totals = tl.load(partials + blocks + block, mask=block < blocks, other=0.0)
    moments = tl.load(partials + 2 * blocks + block, mask=block < blocks, other=0.0)
    top = tl.max(tops, 0)
    below = tl.where(tops == float("-inf"), 0.0, tops - top)
    share = tl.exp(below)
    total = tl.sum(share * totals, 0)
    log_total = tl.log(total)
    return top, top + log_total, log_total - tl.sum(share * (moments + totals * below), 0) / total
