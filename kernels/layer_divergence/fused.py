"""The divergence of premature layers in Triton: three launches, which read each input twice.

The first computes the softmax statistics of every distribution. The second reads all logits again: one program holds a
block of the vocabulary of several layers, reads the final layer's block once for all of them, and sums the block's part
of each divergence. The third adds these parts up and chooses the layer with the largest divergence. A layer that a row
may not choose is not read for it.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.softmax_statistics import (
    block_of_program,
    choose_block_size,
    choose_num_warps,
    flatten_rows,
    load_logits,
    store_block_statistics,
)

__all__ = ["layer_divergence_triton"]

# Layers and elements of each that one program holds: their loads are in flight together, which matters where one row
# has few programs. Twice as many elements need 171 registers a thread (sm_90), which halves the occupancy.
MAX_BLOCK_LAYERS, DIVERGENCE_BLOCK_SIZE = 8, 512
SMALLEST_NORMAL = tl.constexpr(1.2e-38)  # a GPU's logarithm may take a smaller probability for 0


@triton.jit(do_not_specialize=["num_rows", "num_blocks"])
def _layer_statistics_kernel(
    final_ptr,  # (rows, vocab)
    premature_ptr,  # (layers, rows, vocab)
    candidates_ptr,  # (layers, rows) uint8, 0 where the row may not choose the layer; or None
    statistics_ptr,  # (1 + layers, rows, 2, blocks) float32
    stride_final_row,
    stride_premature_row,
    stride_premature_layer,
    vocab_size,
    num_rows,
    num_blocks,
    BLOCK_SIZE: tl.constexpr,
):
    """Store the softmax statistics of one block of the final layer (distribution 0) or of a premature one."""
    row, block, offs, mask = block_of_program(vocab_size, num_blocks, BLOCK_SIZE)
    distribution = tl.program_id(1).to(tl.int64)
    if candidates_ptr is not None:
        layer = distribution - 1
        if tl.load(candidates_ptr + layer * num_rows + row, mask=layer >= 0, other=1) == 0:
            return
    if distribution == 0:
        x = load_logits(final_ptr + row * stride_final_row, offs, mask)
    else:
        layer_ptr = premature_ptr + (distribution - 1) * stride_premature_layer
        x = load_logits(layer_ptr + row * stride_premature_row, offs, mask)
    store_block_statistics(x, statistics_ptr, distribution, row, block, num_rows, num_blocks, NUM_STATISTICS=2)


@triton.jit(do_not_specialize=["num_rows", "num_blocks", "num_partials"])
def _partial_divergence_kernel(
    final_ptr,
    premature_ptr,
    candidates_ptr,
    statistics_ptr,
    partials_ptr,  # (rows, NUM_LAYERS, partials) float32
    stride_final_row,
    stride_premature_row,
    stride_premature_layer,
    vocab_size,
    num_rows,
    num_blocks,
    num_partials,
    NUM_LAYERS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,
    DOLA: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_BLOCKS_PADDED: tl.constexpr,
):
    """Store the part that one block of one row adds to the divergence of every layer."""
    row, block, offs, mask = block_of_program(vocab_size, num_partials, BLOCK_SIZE)
    row_statistics_ptr = statistics_ptr + row * 2 * num_blocks
    stride_distribution = tl.cast(num_rows, tl.int64) * 2 * num_blocks
    offs_layer = tl.arange(0, BLOCK_LAYERS).to(tl.int64)

    x = load_logits(final_ptr + row * stride_final_row, offs, mask)
    final_lse = _log_sum_exps(row_statistics_ptr + tl.arange(0, 1), num_blocks, NUM_BLOCKS_PADDED)
    log_p = x[None, :] - final_lse[:, None]  # (1, BLOCK_SIZE)
    p = tl.exp(log_p)
    for first_layer in range(0, NUM_LAYERS, BLOCK_LAYERS):
        layer = first_layer + offs_layer
        mask_layer = layer < NUM_LAYERS
        if candidates_ptr is not None:
            mask_layer = tl.load(candidates_ptr + layer * num_rows + row, mask=mask_layer, other=0) != 0
        premature_row_ptr = premature_ptr + layer[:, None] * stride_premature_layer + row * stride_premature_row
        y = load_logits(premature_row_ptr, offs[None, :], mask_layer[:, None] & mask[None, :])
        distribution = 1 + tl.minimum(layer, NUM_LAYERS - 1)
        lse = _log_sum_exps(row_statistics_ptr + distribution * stride_distribution, num_blocks, NUM_BLOCKS_PADDED)
        log_q = y - lse[:, None]  # (BLOCK_LAYERS, BLOCK_SIZE)
        q = tl.exp(log_q)
        m = 0.5 * (p + q)
        log_m = tl.log(m)
        if DOLA:
            terms = m * ((log_m - log_p) + (log_m - log_q))
        else:
            terms = tl.where(p > 0, p * (log_p - log_m), 0.0) + tl.where(q > 0, q * (log_q - log_m), 0.0)
        terms = tl.where(m > SMALLEST_NORMAL, terms, 0.0)  # a smaller average adds nothing
        partial_ptr = partials_ptr + (row * NUM_LAYERS + layer) * num_partials + block
        tl.store(partial_ptr, 0.5 * tl.sum(terms, 1), mask=mask_layer)


@triton.jit(do_not_specialize=["num_rows", "num_partials"])
def _choose_layer_kernel(
    partials_ptr,
    candidates_ptr,
    divergences_ptr,  # (NUM_LAYERS, rows) float32
    chosen_ptr,  # (rows,) int64
    num_rows,
    num_partials,
    NUM_LAYERS: tl.constexpr,
    NUM_LAYERS_PADDED: tl.constexpr,
    NUM_PARTIALS_PADDED: tl.constexpr,
):
    """Store the divergences of one row, and the layer with the largest."""
    row = tl.program_id(0).to(tl.int64)
    layer, offs = tl.arange(0, NUM_LAYERS_PADDED), tl.arange(0, NUM_PARTIALS_PADDED)
    mask_layer = layer < NUM_LAYERS
    if candidates_ptr is not None:
        candidate_ptrs = candidates_ptr + layer.to(tl.int64) * num_rows + row
        mask_layer = tl.load(candidate_ptrs, mask=mask_layer, other=0) != 0
    mask = mask_layer[:, None] & (offs < num_partials)[None, :]
    partial_ptrs = partials_ptr + ((row * NUM_LAYERS + layer)[:, None] * num_partials + offs[None, :])
    divergence = tl.maximum(tl.sum(tl.load(partial_ptrs, mask=mask, other=0.0), 1), 0.0)
    divergence = tl.where(mask_layer, divergence, float("-inf"))  # a padding layer's, too
    tl.store(divergences_ptr + layer.to(tl.int64) * num_rows + row, divergence, mask=layer < NUM_LAYERS)
    # Never a padding layer: argmax returns the first of equal ones.
    tl.store(chosen_ptr + row, tl.argmax(divergence, 0).to(tl.int64))


@triton.jit
def _log_sum_exps(row_ptrs, num_blocks, NUM_BLOCKS_PADDED: tl.constexpr):
    """Return (n,) log-sum-exps from the blocks' statistics at (n,) ``row_ptrs``, (2, blocks) float32 each."""
    offs = tl.arange(0, NUM_BLOCKS_PADDED)[None, :]
    maxima = tl.load(row_ptrs[:, None] + offs, mask=offs < num_blocks, other=float("-inf"))
    sums = tl.load(row_ptrs[:, None] + num_blocks + offs, mask=offs < num_blocks, other=0.0)
    row_max = tl.max(maxima, 1)
    shifted = tl.where(maxima == float("-inf"), 0.0, maxima - row_max[:, None])
    return row_max + tl.log(tl.sum(sums * tl.exp(shifted), 1))


def layer_divergence_triton(
    final: Tensor, premature: Tensor, kind: str = "dola", candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute :func:`decoding.kernels.layer_divergence.layer_divergence` with a layer for each row.

    Args:
        final: (..., vocab) logits, any float dtype.
        premature: (layers, ..., vocab) logits, any float dtype.
        kind: "dola" or "jensen-shannon".
        candidates: (layers, ...) bool, which layers each row may choose; None for all.

    Returns:
        Divergences (layers, ...) float32, -inf of a layer that the row may not choose, and the layer with the largest,
        (...) int64.
    """
    shape, vocab_size, num_layers = final.shape[:-1], final.shape[-1], len(premature)
    final, premature = flatten_rows(final), flatten_rows(premature, 2)
    candidates = None if candidates is None else candidates.reshape(num_layers, -1).contiguous().view(torch.uint8)
    num_rows = final.shape[0]
    divergences = torch.empty(num_layers, *shape, dtype=torch.float32, device=final.device)
    chosen = torch.empty(shape, dtype=torch.int64, device=final.device)
    if num_rows == 0:
        return divergences, chosen
    block_layers = min(MAX_BLOCK_LAYERS, triton.next_power_of_2(num_layers))
    block_size = choose_block_size(vocab_size, num_rows * (1 + num_layers))
    num_blocks, num_partials = triton.cdiv(vocab_size, block_size), triton.cdiv(vocab_size, DIVERGENCE_BLOCK_SIZE)
    statistics = torch.empty((1 + num_layers) * num_rows * 2 * num_blocks, dtype=torch.float32, device=final.device)
    partials = torch.empty(num_rows * num_layers * num_partials, dtype=torch.float32, device=final.device)
    sizes = (final.stride(0), premature.stride(1), premature.stride(0), vocab_size, num_rows, num_blocks)
    with torch.cuda.device_of(final):  # Triton launches on the current device
        _layer_statistics_kernel[(num_rows * num_blocks, 1 + num_layers)](
            final,
            premature,
            candidates,
            statistics,
            *sizes,
            BLOCK_SIZE=block_size,
            num_warps=choose_num_warps(block_size),
        )
        _partial_divergence_kernel[(num_rows * num_partials,)](
            final, premature, candidates, statistics, partials, *sizes, num_partials,
            NUM_LAYERS=num_layers, BLOCK_LAYERS=block_layers, DOLA=kind == "dola", BLOCK_SIZE=DIVERGENCE_BLOCK_SIZE,
            NUM_BLOCKS_PADDED=triton.next_power_of_2(num_blocks), num_warps=8,
        )  # fmt: skip
        _choose_layer_kernel[(num_rows,)](
            partials, candidates, divergences, chosen, num_rows, num_partials,
            NUM_LAYERS=num_layers, NUM_LAYERS_PADDED=triton.next_power_of_2(num_layers),
            NUM_PARTIALS_PADDED=triton.next_power_of_2(num_partials), num_warps=8,
        )  # fmt: skip
    return divergences, chosen
