"""The divergence of premature layers in three launches, each input read twice.

The first gives softmax statistics of every distribution. The second reads all again, several layers of one block of the
vocabulary in a program, with the final layer's block read once for them, and sums the block's share of each divergence.
The third sums the shares and takes the largest.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.softmax_statistics import block_size, block_statistics, rows_of, warps

__all__ = ["layer_divergence_triton"]

# Layers and elements of each that one program has before it: the loads of a layer group are under way together where
# one row has few programs. Twice as many elements need 171 registers a thread (sm_90), which halves the occupancy.
LAYERS_AT_ONCE, SHARE_BLOCK = 8, 512
NORMAL = tl.constexpr(1.2e-38)  # below it a GPU's logarithm may take a probability for 0


def layer_divergence_triton(final: Tensor, premature: Tensor, kind: str = "dola") -> tuple[Tensor, Tensor]:
    """Divergences (layers, ...) and the layer with the largest (...); see :func:`layer_divergence`."""
    shape, vocab, layers = final.shape[:-1], final.shape[-1], len(premature)
    final, premature = rows_of(final), rows_of(premature, 2)
    rows = final.shape[0]
    divergences = torch.empty(layers, *shape, dtype=torch.float32, device=final.device)
    chosen = torch.empty(shape, dtype=torch.int64, device=final.device)
    if rows == 0:
        return divergences, chosen
    at_once = min(LAYERS_AT_ONCE, triton.next_power_of_2(layers))
    block = block_size(vocab, rows * (1 + layers))
    blocks, share_blocks = triton.cdiv(vocab, block), triton.cdiv(vocab, SHARE_BLOCK)
    partials = torch.empty((1 + layers) * rows * 2 * blocks, dtype=torch.float32, device=final.device)
    shares = torch.empty(rows * layers * share_blocks, dtype=torch.float32, device=final.device)
    sizes = (final.stride(0), premature.stride(1), premature.stride(0), vocab, rows, blocks)
    with torch.cuda.device_of(final):
        _statistics[(rows * blocks, 1 + layers)](
            final, premature, partials, *sizes, BLOCK=block, num_warps=warps(block)
        )
        _shares[(rows * share_blocks,)](
            final, premature, partials, shares, *sizes, share_blocks,
            LAYERS=layers, AT_ONCE=at_once, DOLA=kind == "dola", BLOCK=SHARE_BLOCK,
            BLOCKS=triton.next_power_of_2(blocks), num_warps=8,
        )  # fmt: skip
        _choice[(rows,)](
            shares, divergences, chosen, rows, share_blocks,
            LAYERS=layers, PADDED=triton.next_power_of_2(layers), BLOCKS=triton.next_power_of_2(share_blocks),
            num_warps=8,
        )  # fmt: skip
    return divergences, chosen


@triton.jit(do_not_specialize=["rows", "blocks"])
def _statistics(
    final,  # (rows, vocab)
    premature,  # (layers, rows, vocab)
    partials,  # (1 + layers, rows, 2, blocks) float32
    final_row,
    premature_row,
    premature_layer,
    vocab,
    rows,
    blocks,
    BLOCK: tl.constexpr,
):
    """Of one block of the final layer (distribution 0) or of a premature one."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    distribution = tl.program_id(1).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    if distribution == 0:
        x = tl.load(final + row * final_row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    else:
        logits = premature + (distribution - 1) * premature_layer + row * premature_row
        x = tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    top, total, _ = block_statistics(x)
    own = partials + (distribution * rows + row) * 2 * blocks + block
    tl.store(own, top)
    tl.store(own + blocks, total)


@triton.jit(do_not_specialize=["rows", "blocks", "share_blocks"])
def _shares(
    final,
    premature,
    partials,
    shares,  # (rows, LAYERS, share_blocks) float32
    final_row,
    premature_row,
    premature_layer,
    vocab,
    rows,
    blocks,
    share_blocks,
    LAYERS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    DOLA: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The share of one block of one row in the divergence of every layer."""
    row = (tl.program_id(0) // share_blocks).to(tl.int64)
    block = tl.program_id(0) % share_blocks
    at = block * BLOCK + tl.arange(0, BLOCK)
    own = partials + row * 2 * blocks
    step = tl.cast(rows, tl.int64) * 2 * blocks  # from one distribution to the next
    layers = tl.arange(0, AT_ONCE).to(tl.int64)

    x = tl.load(final + row * final_row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    log_p = x[None, :] - _log_sums(own + tl.arange(0, 1), blocks, BLOCKS)[:, None]  # (1, BLOCK)
    p = tl.exp(log_p)
    for first in range(0, LAYERS, AT_ONCE):
        layer = first + layers
        real = layer < LAYERS
        logits = premature + layer[:, None] * premature_layer + row * premature_row + at[None, :]
        inside = real[:, None] & (at < vocab)[None, :]
        y = tl.load(logits, mask=inside, other=float("-inf")).to(tl.float32)
        log_q = y - _log_sums(own + (1 + tl.minimum(layer, LAYERS - 1)) * step, blocks, BLOCKS)[:, None]
        q = tl.exp(log_q)
        m = 0.5 * (p + q)
        log_m = tl.log(m)
        if DOLA:
            terms = m * ((log_m - log_p) + (log_m - log_q))
        else:
            terms = tl.where(p > 0, p * (log_p - log_m), 0.0) + tl.where(q > 0, q * (log_q - log_m), 0.0)
        terms = tl.where(m > NORMAL, terms, 0.0)  # an average that small adds nothing
        tl.store(shares + (row * LAYERS + layer) * share_blocks + block, 0.5 * tl.sum(terms, 1), mask=real)


@triton.jit(do_not_specialize=["rows", "share_blocks"])
def _choice(
    shares,
    divergences,  # (LAYERS, rows) float32
    chosen,  # (rows,) int64
    rows,
    share_blocks,
    LAYERS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The divergences of one row, and which is the largest."""
    row = tl.program_id(0).to(tl.int64)
    layer, block = tl.arange(0, PADDED), tl.arange(0, BLOCKS)
    inside = (layer < LAYERS)[:, None] & (block < share_blocks)[None, :]
    at = (row * LAYERS + layer)[:, None] * share_blocks + block[None, :]
    divergence = tl.maximum(tl.sum(tl.load(shares + at, mask=inside, other=0.0), 1), 0.0)
    tl.store(divergences + layer.to(tl.int64) * rows + row, divergence, mask=layer < LAYERS)
    tl.store(chosen + row, tl.argmax(divergence, 0).to(tl.int64))  # never padding: it has 0, and the first 0 wins


@triton.jit
def _log_sums(partials, blocks, BLOCKS: tl.constexpr):
    """(n,) log-sum-exps from the blocks' statistics at (n,) ``partials``: (2, blocks) float32 each."""
    block = tl.arange(0, BLOCKS)[None, :]
    tops = tl.load(partials[:, None] + block, mask=block < blocks, other=float("-inf"))
    totals = tl.load(partials[:, None] + blocks + block, mask=block < blocks, other=0.0)
    top = tl.max(tops, 1)
    below = tl.where(tops == float("-inf"), 0.0, tops - top[:, None])
    return top + tl.log(tl.sum(totals * tl.exp(below), 1))
