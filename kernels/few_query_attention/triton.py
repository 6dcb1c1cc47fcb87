"""Attention of a handful of query tokens in Triton: the keys are split over programs, each key and value read once.

Two launches. ``_attend`` takes one part of the slots of one key head of one row: all the queries of the group's heads
stand side by side as the rows of its products, so that a part is read once for all of them; it leaves their softmax
over the part, and its log-sum-exp. ``_combine`` puts the parts together.

As many parts as fill the GPU in one go, whatever the batch: torch's memory-efficient attention, which a mask leaves
branches to, has one program for a key head of a row, 8 of 132 multiprocessors for one row of a Llama 8B.

Parts divide what a row's mask lets some query see (``span``), so that padding before a row, what has left a sliding
window and the unused end of a static cache are not read, and all programs have the same to do.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.backend import interpreted

__all__ = ["few_query_attention_triton"]

FILLING = 264  # programs: two for each multiprocessor of an H100 or H200, whose shared memory holds that many
MOST_AT_ONCE = 64  # queries that one program holds; of float32 16, multiplied on the ordinary cores


def few_query_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    span: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """See :func:`decoding.kernels.few_query_attention.few_query_attention`."""
    batch, heads, tokens, dim = query.shape
    key_heads, slots, value_dim = value.shape[1:]
    query, key, value = (each if each.stride(3) == 1 else each.contiguous() for each in (query, key, value))
    start, end = span or (None, None)
    span_row = int(start is not None and len(start) > 1)
    if mask is not None:
        mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
        mask = (mask if mask.stride(3) == 1 else mask.contiguous()).expand(batch, heads, -1, -1)
    half = query.dtype == key.dtype == value.dtype in (torch.float16, torch.bfloat16)
    rows = heads // key_heads * tokens
    block_rows = min(MOST_AT_ONCE if half else 16, max(16, triton.next_power_of_2(rows)))
    block_dim, block_value = (max(16, triton.next_power_of_2(each)) for each in (dim, value_dim))
    # 32 KB of keys and values at a time in half precision: three stages of it, twice, fill a multiprocessor's shared
    # memory. The ordinary cores hold what they multiply in registers.
    block_slots = max(32, min(128, 8192 // max(block_dim, block_value))) if half else 16
    programs = batch * key_heads * triton.cdiv(rows, block_rows)
    parts = max(1, min(FILLING // programs, triton.cdiv(slots, block_slots)))
    attended = torch.empty(batch, key_heads, rows, parts, value_dim, dtype=torch.float32, device=query.device)
    sums = torch.empty(batch, key_heads, rows, parts, dtype=torch.float32, device=query.device)
    output = torch.empty(batch, tokens, heads, value_dim, dtype=query.dtype, device=query.device).transpose(1, 2)
    with torch.cuda.device_of(query):  # Triton launches on the current device
        _attend[(parts, batch * key_heads, triton.cdiv(rows, block_rows))](
            query, key, value, mask, start, end, attended, sums, scale, slots,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
            *(mask.stride()[:3] if mask is not None else (0, 0, 0)), span_row,
            KEY_HEADS=key_heads, TOKENS=tokens, ROWS=rows, DIM=dim, VALUE_DIM=value_dim,
            SEEN=mask is not None and mask.dtype == torch.uint8, WIDEN=not half or interpreted(),
            # in the interpreter of Triton 3.6, range() takes no bound that is known at run time only
            BLOCKS=triton.cdiv(triton.cdiv(slots, block_slots), parts) if interpreted() else None,
            BLOCK_ROWS=block_rows, BLOCK_SLOTS=block_slots, BLOCK_DIM=block_dim, BLOCK_VALUE=block_value,
            CHUNK=block_dim if half else min(32, block_dim),
            num_warps=8 if block_rows * block_value >= 8192 else 4, num_stages=3,
        )  # fmt: skip
        _combine[(batch * heads * tokens,)](
            attended, sums, output, parts, *output.stride()[:3],
            HEADS=heads, TOKENS=tokens, VALUE_DIM=value_dim,
            BLOCK_PARTS=triton.next_power_of_2(parts), SOME=min(16, triton.next_power_of_2(parts)),
            BLOCK_VALUE=block_value,
        )  # fmt: skip
    return output


# A text that grows must not have it compiled anew.
@triton.jit(do_not_specialize=["slots", "mask_row", "mask_head", "mask_token"])
def _attend(
    query,  # (batch, heads, TOKENS, DIM)
    key,  # (batch, KEY_HEADS, slots, DIM)
    value,  # (batch, KEY_HEADS, slots, VALUE_DIM)
    mask,  # (batch, heads, TOKENS, slots), added or, where SEEN, not 0 where a query looks; or None
    start,  # (batch or 1,) first slot that counts, or None
    end,  # (batch or 1,) behind the last one, or None
    attended,  # (batch, KEY_HEADS, ROWS, parts, VALUE_DIM) float32
    sums,  # (batch, KEY_HEADS, ROWS, parts) float32
    scale,
    slots,
    query_row,
    query_head,
    query_token,
    key_row,
    key_head,
    key_slot,
    value_row,
    value_head,
    value_slot,
    mask_row,
    mask_head,
    mask_token,
    span_row,
    KEY_HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,  # queries of a key head: the tokens of the first head of its group, of the second, ...
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    SEEN: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    CHUNK: tl.constexpr,  # dimensions multiplied at a time
):
    part, parts = tl.program_id(0), tl.num_programs(0)
    row = (tl.program_id(1) // KEY_HEADS).to(tl.int64)
    head = (tl.program_id(1) % KEY_HEADS).to(tl.int64)
    first, last = 0, slots
    if start is not None:
        first = tl.load(start + row * span_row).to(tl.int32)
        last = tl.load(end + row * span_row).to(tl.int32)
    width = tl.cdiv(tl.cdiv(last - first, BLOCK_SLOTS), parts) * BLOCK_SLOTS
    first += part * width
    last = tl.minimum(first + width, last)

    rows = tl.program_id(2) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    of_head = head * (ROWS // TOKENS) + rows // TOKENS  # among all query heads
    token = rows % TOKENS
    is_row = rows < ROWS
    chunk, dims, value_dims = tl.arange(0, CHUNK), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_VALUE)
    queries = query + row * query_row + of_head * query_head + token * query_token
    keys = key + row * key_row + head * key_head
    values = value + row * value_row + head * value_head
    if mask is not None:
        mask += row * mask_row
        masks = mask + of_head * mask_head + token.to(tl.int64) * mask_token
    if CHUNK == BLOCK_DIM:
        q = tl.load(queries[:, None] + dims[None, :], mask=is_row[:, None] & (dims < DIM)[None, :], other=0.0)
        if WIDEN:
            q = q.to(tl.float32)

    most = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    summed = tl.zeros([BLOCK_ROWS, BLOCK_VALUE], tl.float32)
    for block in range(0, tl.cdiv(last - first, BLOCK_SLOTS) if BLOCKS is None else BLOCKS):
        at = first + block * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
        inside = at < last
        wide = at.to(tl.int64)
        if CHUNK == BLOCK_DIM:
            k = tl.load(
                keys + wide[:, None] * key_slot + dims[None, :],
                mask=inside[:, None] & (dims < DIM)[None, :],
                other=0.0,
            )
            if WIDEN:
                k = k.to(tl.float32)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        else:
            scores = tl.zeros([BLOCK_ROWS, BLOCK_SLOTS], tl.float32)
            for done in range(0, BLOCK_DIM, CHUNK):
                some = done + chunk
                q = tl.load(queries[:, None] + some[None, :], mask=is_row[:, None] & (some < DIM)[None, :], other=0.0)
                k = tl.load(
                    keys + wide[:, None] * key_slot + some[None, :],
                    mask=inside[:, None] & (some < DIM)[None, :],
                    other=0.0,
                )
                scores = tl.dot(q.to(tl.float32), tl.trans(k.to(tl.float32)), scores, input_precision="ieee")
        scores *= scale
        if mask is not None:
            bias = tl.load(masks[:, None] + at[None, :], mask=is_row[:, None] & inside[None, :], other=0)
            if SEEN:
                scores = tl.where(bias != 0, scores, float("-inf"))
            else:
                scores += bias.to(tl.float32)
        scores = tl.where(inside[None, :], scores, float("-inf"))
        now = tl.maximum(most, tl.max(scores, axis=1))
        base = tl.where(now == float("-inf"), 0.0, now)  # of a query that has seen nothing yet
        weights = tl.exp(scores - base[:, None])
        before = tl.exp(most - base)
        total = total * before + tl.sum(weights, axis=1)
        v = tl.load(
            values + wide[:, None] * value_slot + value_dims[None, :],
            mask=inside[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        if WIDEN:
            v = v.to(tl.float32)
        summed = tl.dot(weights.to(v.dtype), v, summed * before[:, None], input_precision="ieee")
        most = now

    seen = total > 0.0
    at = ((row * KEY_HEADS + head) * ROWS + rows) * parts + part
    tl.store(sums + at, tl.where(seen, most + tl.log(tl.where(seen, total, 1.0)), float("-inf")), mask=is_row)
    tl.store(
        attended + at[:, None] * VALUE_DIM + value_dims[None, :],
        summed / tl.where(seen, total, 1.0)[:, None],
        mask=is_row[:, None] & (value_dims < VALUE_DIM)[None, :],
    )


@triton.jit(do_not_specialize=["parts"])
def _combine(
    attended,  # (batch, heads, TOKENS, parts, VALUE_DIM) float32: a key head's rows lie as the heads of its group do
    sums,  # (batch, heads, TOKENS, parts) float32
    output,  # (batch, heads, TOKENS, VALUE_DIM)
    parts,
    output_row,
    output_head,
    output_token,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    SOME: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, BLOCK_PARTS)
    dims = tl.arange(0, BLOCK_VALUE)
    logs = tl.load(sums + query * parts + every, mask=every < parts, other=float("-inf"))
    most = tl.max(logs, axis=0)
    base = tl.where(most == float("-inf"), 0.0, most)  # of a query that has seen nothing at all
    total = tl.sum(tl.exp(logs - base), axis=0)
    combined = tl.zeros([SOME, BLOCK_VALUE], tl.float32)
    for done in range(0, BLOCK_PARTS, SOME):
        some = done + tl.arange(0, SOME)
        inside = some < parts
        weights = tl.exp(tl.load(sums + query * parts + some, mask=inside, other=float("-inf")) - base)
        of_parts = tl.load(
            attended + (query * parts + some)[:, None] * VALUE_DIM + dims[None, :],
            mask=inside[:, None] & (dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        combined += of_parts * weights[:, None]
    at = query // TOKENS // HEADS * output_row + query // TOKENS % HEADS * output_head + query % TOKENS * output_token
    combined = tl.sum(combined, axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(output + at + dims, combined.to(output.dtype.element_ty), mask=dims < VALUE_DIM)
