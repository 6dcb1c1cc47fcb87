"""The degeneration penalty in Triton: the history is read once, by as many programs as it has tiles of slots.

Two launches. In the first, a program takes one tile of one row and stores the tile's largest cosine with every
candidate. The second takes the maximum over the tiles: ``_penalty_kernel`` here, the selection's own kernel elsewhere.

The candidates' products with a tile use tensor cores, although k is 4 or 5 and tensor cores work on 8 columns or more.
A bfloat16 element of the history arrives every 19 (H100) or 13 (H200) issued instructions of a multiprocessor; k
multiply-adds with a conversion and the sums across lanes would take most of them, and tensor cores take none. At k = 64
the products need 64 FLOP a byte where these GPUs have about 180, so one kernel serves every k; beyond 64 the history is
read once for each 64 candidates. float32 states, which tensor cores would round to TF32, are multiplied in full
precision.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.backend import interpreted

__all__ = ["append_triton", "degeneration_penalty_triton", "tile_cosines", "tile_maximum"]

MAX_BLOCK_K = 64  # candidates that one program holds
TARGET_TILES = 200  # tiles that keep an H100 or H200 (132 multiprocessors) busy
NO_SLOT = tl.constexpr(2**31 - 1)  # larger than any slot


@triton.jit(do_not_specialize=["end", "num_tiles"])
def _tile_cosines_kernel(
    candidates_ptr,  # (batch, K, DIM)
    history_ptr,  # (batch, capacity, DIM)
    inverse_norms_ptr,  # (batch, capacity) float32
    start_ptr,  # (batch,) or None
    length_ptr,  # (batch,) or None
    tile_max_ptr,  # (batch, K, tiles) float32
    tile_argmax_ptr,  # (batch, K, tiles) int32, or None
    end,
    num_tiles,
    stride_candidates_row,
    stride_candidates_k,
    stride_candidates_dim,
    stride_history_row,
    stride_history_slot,
    stride_history_dim,
    stride_norms_row,
    stride_norms_slot,
    K: tl.constexpr,
    DIM: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Store the largest cosine of each candidate in one tile of one row, and the first slot that has it."""
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    row_start = 0
    row_end = end
    if start_ptr is not None:
        row_start = tl.load(start_ptr + row)
    if length_ptr is not None:
        row_end = tl.minimum(tl.load(length_ptr + row), end)
    offs_slot = tile * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    mask_slot = (offs_slot >= row_start) & (offs_slot < row_end)
    offs_k = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    largest = tl.full([BLOCK_K], float("-inf"), tl.float32)
    slot = tl.full([BLOCK_K], NO_SLOT, tl.int32)
    if tl.maximum(tile * BLOCK_SLOTS, row_start) < tl.minimum((tile + 1) * BLOCK_SLOTS, row_end):
        offs_dim = tl.arange(0, BLOCK_DIM)
        # (BLOCK_SLOTS, BLOCK_DIM) and (BLOCK_DIM, BLOCK_K)
        history_ptrs = history_ptr + row * stride_history_row
        history_ptrs += (
            offs_slot.to(tl.int64)[:, None] * stride_history_slot + offs_dim.to(tl.int64)[None, :] * stride_history_dim
        )
        candidate_ptrs = candidates_ptr + row * stride_candidates_row
        candidate_ptrs += offs_k[None, :] * stride_candidates_k + offs_dim.to(tl.int64)[:, None] * stride_candidates_dim
        products = tl.zeros([BLOCK_SLOTS, BLOCK_K], tl.float32)
        squares = tl.zeros([BLOCK_DIM, BLOCK_K], tl.float32)
        for first_dim in range(0, DIM, BLOCK_DIM):
            mask_history = mask_slot[:, None]
            mask_candidates = (offs_k < K)[None, :]
            if DIM % BLOCK_DIM != 0:
                mask_history = mask_history & (offs_dim < DIM - first_dim)[None, :]
                mask_candidates = mask_candidates & (offs_dim < DIM - first_dim)[:, None]
            states = tl.load(history_ptrs, mask=mask_history, other=0.0)
            candidates = tl.load(candidate_ptrs, mask=mask_candidates, other=0.0)
            candidates_fp32 = candidates.to(tl.float32)
            squares += candidates_fp32 * candidates_fp32
            if UPCAST:
                products = tl.dot(states.to(tl.float32), candidates_fp32, products, input_precision="ieee")
            else:
                products = tl.dot(states, candidates, products)
            history_ptrs += BLOCK_DIM * stride_history_dim
            candidate_ptrs += BLOCK_DIM * stride_candidates_dim
        norm_ptrs = inverse_norms_ptr + row * stride_norms_row + offs_slot.to(tl.int64) * stride_norms_slot
        norms = tl.load(norm_ptrs, mask=mask_slot, other=0.0)
        cosines = tl.where(mask_slot[:, None], products * norms[:, None], float("-inf"))
        largest = tl.max(cosines, axis=0)
        if tile_argmax_ptr is not None:  # the first of equal ones
            slot = tl.min(tl.where(cosines == largest[None, :], offs_slot[:, None], NO_SLOT), axis=0)
        # A zero candidate's factor 0 never meets -inf: this tile has a slot of the row.
        largest *= _inverse_norm(tl.sum(squares, axis=0))
    offs = (row * K + offs_k) * num_tiles + tile
    tl.store(tile_max_ptr + offs, largest, mask=offs_k < K)
    if tile_argmax_ptr is not None:
        tl.store(tile_argmax_ptr + offs, slot, mask=offs_k < K)


@triton.jit(do_not_specialize=["num_tiles"])
def _penalty_kernel(
    tile_max_ptr,  # (batch, K, tiles) float32
    tile_argmax_ptr,  # (batch, K, tiles) int32, or None
    penalty_ptr,  # (batch, K) float32
    slots_ptr,  # (batch, K) int64, or None
    num_tiles,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """Store the penalties of one row, and the slots that have them, -1 without history."""
    row = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    penalty, slot = tile_maximum(tile_max_ptr, tile_argmax_ptr, row, offs_k, num_tiles, K, BLOCK_K, BLOCK_TILES)
    tl.store(penalty_ptr + row * K + offs_k, penalty, mask=offs_k < K)
    if tile_argmax_ptr is not None:
        tl.store(slots_ptr + row * K + offs_k, tl.where(slot == NO_SLOT, -1, slot).to(tl.int64), mask=offs_k < K)


@triton.jit
def tile_maximum(
    tile_max_ptr,
    tile_argmax_ptr,
    row,
    offs_k,
    num_tiles,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """Return the maximum over the tiles that :func:`tile_cosines` stored for candidates of one row.

    (BLOCK_K,) penalties, 0 for a row without history, and (BLOCK_K,) slots that have them, the first of equal ones;
    NO_SLOT where ``tile_argmax_ptr`` is None.
    """
    largest = tl.full([BLOCK_K, BLOCK_TILES], float("-inf"), tl.float32)
    slots = tl.full([BLOCK_K, BLOCK_TILES], NO_SLOT, tl.int32)
    first_tile = 0
    while first_tile < num_tiles:  # in the interpreter of Triton 3.6, range() takes no bound known at run time only
        tile = first_tile + tl.arange(0, BLOCK_TILES)
        mask = (offs_k < K)[:, None] & (tile < num_tiles)[None, :]
        offs = (row * K + offs_k)[:, None] * num_tiles + tile[None, :]
        cosines = tl.load(tile_max_ptr + offs, mask=mask, other=float("-inf"))
        if tile_argmax_ptr is not None:
            slots = tl.where(cosines > largest, tl.load(tile_argmax_ptr + offs, mask=mask, other=NO_SLOT), slots)
        largest = tl.maximum(largest, cosines)
        first_tile += BLOCK_TILES
    penalty = tl.max(largest, axis=1)
    slot = tl.min(tl.where(largest == penalty[:, None], slots, NO_SLOT), axis=1)
    return tl.where(penalty == float("-inf"), 0.0, penalty), slot


@triton.jit(do_not_specialize=["at"])
def _append_kernel(
    hidden_ptr,  # (batch, n, DIM)
    history_ptr,  # (batch, capacity, DIM)
    inverse_norms_ptr,  # (batch, capacity) float32
    at,
    stride_hidden_row,
    stride_hidden_slot,
    stride_hidden_dim,
    stride_history_row,
    stride_history_slot,
    stride_history_dim,
    stride_norms_row,
    stride_norms_slot,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Copy one hidden state into the history, and store its inverse norm."""
    i = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    slot = at + i
    hidden_ptr = hidden_ptr + row * stride_hidden_row + i * stride_hidden_slot
    history_ptr = history_ptr + row * stride_history_row + slot * stride_history_slot
    squares = tl.zeros([BLOCK_DIM], tl.float32)
    for first_dim in range(0, DIM, BLOCK_DIM):
        offs_dim = first_dim + tl.arange(0, BLOCK_DIM).to(tl.int64)
        mask = offs_dim < DIM
        state = tl.load(hidden_ptr + offs_dim * stride_hidden_dim, mask=mask, other=0.0)
        tl.store(history_ptr + offs_dim * stride_history_dim, state, mask=mask)
        state_fp32 = state.to(tl.float32)
        squares += state_fp32 * state_fp32
    inverse_norm = _inverse_norm(tl.sum(squares, axis=0))
    tl.store(inverse_norms_ptr + row * stride_norms_row + slot * stride_norms_slot, inverse_norm)


@triton.jit
def _inverse_norm(sum_of_squares):
    """Return 1 / √(sum of squares), 0 for a zero vector."""
    norm = tl.sqrt(sum_of_squares)
    return 1.0 / tl.where(norm > 0, norm, float("inf"))


def degeneration_penalty_triton(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    positions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`decoding.kernels.degeneration_penalty.degeneration_penalty`: penalties, and slots or None."""
    batch, k, _ = candidates.shape
    tile_max, tile_argmax = tile_cosines(candidates, history, history_inverse_norms, start, length, positions)
    penalty = torch.empty(batch, k, dtype=torch.float32, device=history.device)
    slots = torch.empty(batch, k, dtype=torch.int64, device=history.device) if positions else None
    block_k = min(MAX_BLOCK_K, triton.next_power_of_2(k))
    with torch.cuda.device_of(history):  # Triton launches on the current device
        _penalty_kernel[(batch, triton.cdiv(k, block_k))](
            tile_max, tile_argmax, penalty, slots, tile_max.shape[2],
            K=k, BLOCK_K=block_k, BLOCK_TILES=min(256, 2048 // block_k),
        )  # fmt: skip
    return penalty, slots


def tile_cosines(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    positions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute the largest cosine of each candidate in each tile of the history.

    Arguments as in :func:`decoding.kernels.degeneration_penalty.degeneration_penalty`.

    Returns:
        (batch, k, tiles) float32, -inf where the tile holds no slot of the row; with ``positions`` also the slots that
        have them, (batch, k, tiles) int32, else None.
    """
    batch, k, dim = candidates.shape
    end = length if isinstance(length, int) else history.shape[1]
    half = history.dtype == candidates.dtype != torch.float32
    # Larger tiles read the candidates (from L2) less often; smaller ones spread a short history over more
    # multiprocessors.
    block_slots = next(size for size in (64, 32, 16) if size == 16 or (half and batch * end >= size * TARGET_TILES))
    num_tiles = max(1, triton.cdiv(end, block_slots))
    tile_max = torch.empty(batch, k, num_tiles, dtype=torch.float32, device=history.device)
    tile_argmax = torch.empty(batch, k, num_tiles, dtype=torch.int32, device=history.device) if positions else None
    # float32 products run on the ordinary cores and hold a whole BLOCK_DIM in registers: 32 of it spills nothing.
    block_dim = min(128 if half else 32, max(16, triton.next_power_of_2(dim)))
    block_k = min(MAX_BLOCK_K, max(8, triton.next_power_of_2(k)))
    start, length = (x.to(history.device) if isinstance(x, Tensor) else None for x in (start, length))
    with torch.cuda.device_of(history):  # Triton launches on the current device
        _tile_cosines_kernel[(num_tiles, batch, triton.cdiv(k, block_k))](
            candidates, history, history_inverse_norms, start, length, tile_max, tile_argmax, end, num_tiles,
            *candidates.stride(), *history.stride(), *history_inverse_norms.stride(),
            K=k, DIM=dim, UPCAST=not half or interpreted(), BLOCK_SLOTS=block_slots, BLOCK_K=block_k,
            BLOCK_DIM=block_dim, num_warps=4, num_stages=4,
        )  # fmt: skip
    return tile_max, tile_argmax


def append_triton(history: Tensor, history_inverse_norms: Tensor, hidden: Tensor, at: int) -> None:
    """Write hidden states and their inverse norms in place: :func:`decoding.kernels.degeneration_penalty.append`."""
    batch, n, dim = hidden.shape
    with torch.cuda.device_of(history):  # Triton launches on the current device
        _append_kernel[(n, batch)](
            hidden, history, history_inverse_norms, at,
            *hidden.stride(), *history.stride(), *history_inverse_norms.stride(),
            DIM=dim, BLOCK_DIM=min(2048, triton.next_power_of_2(dim)),
        )  # fmt: skip
