"""Softmax statistics of a row, computed block by block: the part that the kernels over the vocabulary share.

The statistics of a block are (max, Σ exp(x - max), Σ exp(x - max)·(x - max)). The blocks of a row together give its
maximum, its log-sum-exp and the entropy of its softmax, so one read of the row is enough for all three.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "block_of_program",
    "choose_block_size",
    "choose_num_warps",
    "flatten_rows",
    "load_logits",
    "row_statistics",
    "store_block_statistics",
]

# Two programs for each of the 132 multiprocessors of an H100; blocks smaller than 1024 would have more statistics to
# read than logits.
TARGET_PROGRAMS = 264
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 1024, 4096


@triton.jit
def block_of_program(vocab_size, num_blocks, BLOCK_SIZE: tl.constexpr):
    """Return row and block of this program, and the block's (BLOCK_SIZE,) offsets in the row with their mask."""
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    block = tl.program_id(0) % num_blocks
    offs = block * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    return row, block, offs, offs < vocab_size


@triton.jit
def load_logits(row_ptr, offs, mask):
    """Load logits of a row as float32 (the interpreter's bfloat16 arithmetic is wrong), -inf where masked."""
    return tl.load(row_ptr + offs, mask=mask, other=float("-inf")).to(tl.float32)


@triton.jit
def store_block_statistics(
    x,  # (BLOCK_SIZE,) float32 logits of the block; -inf adds nothing
    statistics_ptr,  # (distributions, rows, NUM_STATISTICS, blocks) float32
    distribution,
    row,
    block,
    num_rows,
    num_blocks,
    NUM_STATISTICS: tl.constexpr,  # 3, or 2 without the sum that the entropy needs
):
    """Compute the statistics of one block and store them."""
    block_max = tl.max(x, 0)
    shifted = tl.where(x == float("-inf"), 0.0, x - block_max)
    exps = tl.where(x == float("-inf"), 0.0, tl.exp(shifted))
    block_ptr = statistics_ptr + (distribution * num_rows + row) * NUM_STATISTICS * num_blocks + block
    tl.store(block_ptr, block_max)
    tl.store(block_ptr + num_blocks, tl.sum(exps, 0))
    if NUM_STATISTICS == 3:
        tl.store(block_ptr + 2 * num_blocks, tl.sum(exps * shifted, 0))


@triton.jit
def row_statistics(row_ptr, num_blocks, NUM_BLOCKS_PADDED: tl.constexpr):
    """Return (max, log-sum-exp, entropy) of a row from its blocks' statistics at ``row_ptr``, (3, blocks) float32."""
    offs = tl.arange(0, NUM_BLOCKS_PADDED)
    mask = offs < num_blocks
    maxima = tl.load(row_ptr + offs, mask=mask, other=float("-inf"))
    sums = tl.load(row_ptr + num_blocks + offs, mask=mask, other=0.0)
    moments = tl.load(row_ptr + 2 * num_blocks + offs, mask=mask, other=0.0)
    row_max = tl.max(maxima, 0)
    shifted = tl.where(maxima == float("-inf"), 0.0, maxima - row_max)
    exps = tl.exp(shifted)
    total = tl.sum(exps * sums, 0)
    log_total = tl.log(total)
    return row_max, row_max + log_total, log_total - tl.sum(exps * (moments + sums * shifted), 0) / total


def choose_block_size(vocab_size: int, num_rows: int) -> int:
    """Choose how many elements of a row one program reads, so that a single row fills a GPU too."""
    block_size = MAX_BLOCK_SIZE
    while block_size > MIN_BLOCK_SIZE and num_rows * triton.cdiv(vocab_size, block_size) < TARGET_PROGRAMS:
        block_size //= 2
    return block_size


def choose_num_warps(block_size: int) -> int:
    """Choose the warps of a program with ``block_size`` elements: 8 to 16 elements a thread."""
    return 8 if block_size > 2048 else 4


def flatten_rows(logits: Tensor, leading: int = 1) -> Tensor:
    """Reshape logits (..., vocab) to (rows, vocab), or with ``leading=2`` (n, ..., vocab) to (n, rows, vocab).

    The result is a view where strides allow it; its last dimension is contiguous.
    """
    rows = logits.reshape(*logits.shape[: leading - 1], -1, logits.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
