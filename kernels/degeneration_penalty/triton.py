"""The degeneration penalty in Triton: the history is read once, by as many programs as it has tiles.

Two launches. ``_cosines`` takes one tile of slots of one row each and leaves the tile's largest cosine with every
candidate; the second (``_penalty`` here, the selection's own elsewhere) takes the largest over the tiles.

The candidates' products with a tile go through the tensor cores, although k is 4 or 5 and they work on 8 columns or
more: a bfloat16 element of the history arrives every 19 (H100) or 13 (H200) issued instructions of a multiprocessor, k
multiply-adds with a conversion and the sums across lanes would take most of them, and the tensor cores none. At k = 64
the products still ask for 64 FLOP a byte where these GPUs give about 180, so that one form serves every k; beyond 64
the history is read once for each 64 candidates. float32 states, which tensor cores would round to TF32, are multiplied
in full precision.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.backend import interpreted

__all__ = ["append_triton", "degeneration_penalty_triton", "largest_cosines", "tile_cosines"]

MOST_AT_ONCE = 64  # candidates that one program holds
FILLING = 200  # tiles that keep an H100 or H200 (132 multiprocessors) busy
NOWHERE = tl.constexpr(2**31 - 1)  # a slot beyond any


def degeneration_penalty_triton(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    positions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Penalties, and the positions where asked for; see :func:`decoding.kernels.degeneration_penalty`."""
    batch, k, _ = candidates.shape
    best, where = tile_cosines(candidates, history, history_inverse_norms, start, length, positions)
    penalty = torch.empty(batch, k, dtype=torch.float32, device=history.device)
    repeated = torch.empty(batch, k, dtype=torch.int64, device=history.device) if positions else None
    block_k = min(MOST_AT_ONCE, triton.next_power_of_2(k))
    sizes = {"K": k, "BLOCK_K": block_k, "BLOCK_TILES": min(256, 2048 // block_k)}
    with torch.cuda.device_of(history):  # Triton launches on the current device
        _penalty[(batch, triton.cdiv(k, block_k))](best, where, penalty, repeated, best.shape[2], **sizes)
    return penalty, repeated


def tile_cosines(
    candidates: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    positions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The largest cosine of each candidate in each tile of the history, (batch, k, tiles) float32, -inf where the tile
    holds nothing of the row; and the slot that has it, (batch, k, tiles) int32, where asked for.
    """
    batch, k, dim = candidates.shape
    end = length if isinstance(length, int) else history.shape[1]
    half = history.dtype == candidates.dtype != torch.float32
    # The larger a tile, the less the candidates are read again (from L2) beside it; the smaller, the more
    # multiprocessors a short history goes to.
    block_slots = next(slots for slots in (64, 32, 16) if slots == 16 or (half and batch * end >= slots * FILLING))
    tiles = max(1, triton.cdiv(end, block_slots))
    best = torch.empty(batch, k, tiles, dtype=torch.float32, device=history.device)
    where = torch.empty(batch, k, tiles, dtype=torch.int32, device=history.device) if positions else None
    # float32 products run on the ordinary cores and hold a whole BLOCK_DIM in registers: 32 of it spills nothing.
    block_dim = min(128 if half else 32, max(16, triton.next_power_of_2(dim)))
    block_k = min(MOST_AT_ONCE, max(8, triton.next_power_of_2(k)))
    with torch.cuda.device_of(history):
        _cosines[(tiles, batch, triton.cdiv(k, block_k))](
            candidates, history, history_inverse_norms, _beside(start, history), _beside(length, history), best, where,
            end, tiles, *candidates.stride(), *history.stride(), *history_inverse_norms.stride(),
            K=k, DIM=dim, WIDEN=not half or interpreted(), BLOCK_SLOTS=block_slots, BLOCK_K=block_k,
            BLOCK_DIM=block_dim, num_warps=4, num_stages=4,
        )  # fmt: skip
    return best, where


def append_triton(history: Tensor, history_inverse_norms: Tensor, hidden: Tensor, at: int) -> None:
    """See :func:`decoding.kernels.degeneration_penalty.append`."""
    batch, n, dim = hidden.shape
    strides = *hidden.stride(), *history.stride(), *history_inverse_norms.stride()
    block_dim = min(2048, triton.next_power_of_2(dim))
    with torch.cuda.device_of(history):
        _append[(n, batch)](hidden, history, history_inverse_norms, at, *strides, DIM=dim, BLOCK_DIM=block_dim)


def _beside(bounds: int | Tensor | None, history: Tensor) -> Tensor | None:
    return bounds.to(history.device) if isinstance(bounds, Tensor) else None


@triton.jit(do_not_specialize=["end", "tiles"])
def _cosines(
    candidates,  # (batch, K, DIM)
    history,  # (batch, capacity, DIM)
    inverse_norms,  # (batch, capacity) float32
    start,  # (batch,) or None
    length,  # (batch,) or None
    best,  # (batch, K, tiles) float32
    where,  # (batch, K, tiles) int32, or None
    end,
    tiles,
    candidates_row,
    candidates_k,
    candidates_dim,
    history_row,
    history_slot,
    history_dim,
    norms_row,
    norms_slot,
    K: tl.constexpr,
    DIM: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    first = 0
    last = end
    if start is not None:
        first = tl.load(start + row)
    if length is not None:
        last = tl.minimum(tl.load(length + row), end)
    slots = tile * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    inside = (slots >= first) & (slots < last)
    ks = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    largest = tl.full([BLOCK_K], float("-inf"), tl.float32)
    slot = tl.full([BLOCK_K], NOWHERE, tl.int32)
    if tl.maximum(tile * BLOCK_SLOTS, first) < tl.minimum((tile + 1) * BLOCK_SLOTS, last):
        dims = tl.arange(0, BLOCK_DIM)
        # (BLOCK_SLOTS, BLOCK_DIM) and (BLOCK_DIM, BLOCK_K)
        of_history = history + row * history_row
        of_history += slots.to(tl.int64)[:, None] * history_slot + dims.to(tl.int64)[None, :] * history_dim
        of_candidates = candidates + row * candidates_row
        of_candidates += ks[None, :] * candidates_k + dims.to(tl.int64)[:, None] * candidates_dim
        products = tl.zeros([BLOCK_SLOTS, BLOCK_K], tl.float32)
        squares = tl.zeros([BLOCK_DIM, BLOCK_K], tl.float32)
        for done in range(0, DIM, BLOCK_DIM):
            rows_mask = inside[:, None]
            columns_mask = (ks < K)[None, :]
            if DIM % BLOCK_DIM != 0:
                rows_mask = rows_mask & (dims < DIM - done)[None, :]
                columns_mask = columns_mask & (dims < DIM - done)[:, None]
            states = tl.load(of_history, mask=rows_mask, other=0.0)
            looked_at = tl.load(of_candidates, mask=columns_mask, other=0.0)
            wide = looked_at.to(tl.float32)
            squares += wide * wide
            if WIDEN:
                products = tl.dot(states.to(tl.float32), wide, products, input_precision="ieee")
            else:
                products = tl.dot(states, looked_at, products)
            of_history += BLOCK_DIM * history_dim
            of_candidates += BLOCK_DIM * candidates_dim
        norms = tl.load(inverse_norms + row * norms_row + slots.to(tl.int64) * norms_slot, mask=inside, other=0.0)
        of_slots = tl.where(inside[:, None], products * norms[:, None], float("-inf"))
        largest = tl.max(of_slots, axis=0)
        if where is not None:  # the first of equals
            slot = tl.min(tl.where(of_slots == largest[None, :], slots[:, None], NOWHERE), axis=0)
        # The factor 0 of a zero candidate meets no -inf: some slot of this tile is the row's.
        largest *= _inverse(tl.sqrt(tl.sum(squares, axis=0)))
    at = (row * K + ks) * tiles + tile
    tl.store(best + at, largest, mask=ks < K)
    if where is not None:
        tl.store(where + at, slot, mask=ks < K)


@triton.jit(do_not_specialize=["tiles"])
def _penalty(best, where, penalty, repeated, tiles, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_TILES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    ks = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    largest, slot = largest_cosines(best, where, row, ks, tiles, K, BLOCK_K, BLOCK_TILES)
    tl.store(penalty + row * K + ks, largest, mask=ks < K)
    if where is not None:
        tl.store(repeated + row * K + ks, tl.where(slot == NOWHERE, -1, slot).to(tl.int64), mask=ks < K)


@triton.jit
def largest_cosines(best, where, row, ks, tiles, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_TILES: tl.constexpr):
    """(BLOCK_K,) penalties of the candidates ``ks`` of one row from what :func:`tile_cosines` left, 0 for a row without
    history; and the slots that have them, NOWHERE where ``where`` is None.
    """
    largest = tl.full([BLOCK_K, BLOCK_TILES], float("-inf"), tl.float32)
    slots = tl.full([BLOCK_K, BLOCK_TILES], NOWHERE, tl.int32)
    done = 0
    while done < tiles:  # in the interpreter of Triton 3.6, range() takes no bound that is known at run time only
        tile = done + tl.arange(0, BLOCK_TILES)
        mask = (ks < K)[:, None] & (tile < tiles)[None, :]
        at = (row * K + ks)[:, None] * tiles + tile[None, :]
        cosines = tl.load(best + at, mask=mask, other=float("-inf"))
        if where is not None:
            slots = tl.where(cosines > largest, tl.load(where + at, mask=mask, other=NOWHERE), slots)
        largest = tl.maximum(largest, cosines)
        done += BLOCK_TILES
    penalty = tl.max(largest, axis=1)
    slot = tl.min(tl.where(largest == penalty[:, None], slots, NOWHERE), axis=1)
    return tl.where(penalty == float("-inf"), 0.0, penalty), slot


@triton.jit(do_not_specialize=["at"])
def _append(
    hidden,  # (batch, n, DIM)
    history,  # (batch, capacity, DIM)
    inverse_norms,  # (batch, capacity) float32
    at,
    hidden_row,
    hidden_slot,
    hidden_dim,
    history_row,
    history_slot,
    history_dim,
    norms_row,
    norms_slot,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    slot = at + i
    squares = tl.zeros([BLOCK_DIM], tl.float32)
    for done in range(0, DIM, BLOCK_DIM):
        dims = done + tl.arange(0, BLOCK_DIM).to(tl.int64)
        state = tl.load(hidden + row * hidden_row + i * hidden_slot + dims * hidden_dim, mask=dims < DIM, other=0.0)
        tl.store(history + row * history_row + slot * history_slot + dims * history_dim, state, mask=dims < DIM)
        wide = state.to(tl.float32)
        squares += wide * wide
    norm = tl.sqrt(tl.sum(squares, axis=0))
    tl.store(inverse_norms + row * norms_row + slot * norms_slot, _inverse(norm))


@triton.jit
def _inverse(norm):
    return 1.0 / tl.where(norm > 0, norm, float("inf"))  # 0 for a zero vector
