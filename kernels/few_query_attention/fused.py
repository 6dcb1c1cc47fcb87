"""Attention of a few query tokens in Triton: the keys are split over programs, each key and value is read once.

Two launches, as in flash decoding. In the first, a program takes one split of the slots of one key head of one row. The
queries of all heads of the group are the rows of its products, so the split is read once for all of them. It stores
their attention over the split, and the log-sum-exp of its scores. The second launch combines the splits.

There are as many splits as fill the GPU, whatever the batch. torch's memory-efficient attention, which is the one left
for branches with a mask, has one program for a key head of a row: 8 of 132 multiprocessors for one row of a Llama 8B.

Splits divide the span that a row's mask lets some query see. So left padding, slots outside a sliding window and the
unused end of a static cache are not read, and all programs have equal work.
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
MAX_BLOCK_M, MAX_BLOCK_M_FP32 = 64, 16  # queries that one program holds; float32 runs on the ordinary cores


# Sizes that change as the text grows are not specialized, so that nothing is compiled again.
@triton.jit(do_not_specialize=["num_slots", "stride_mask_row", "stride_mask_head", "stride_mask_token"])
def _split_attention_kernel(
    query_ptr,  # (batch, heads, TOKENS, DIM)
    key_ptr,  # (batch, KEY_HEADS, slots, DIM)
    value_ptr,  # (batch, KEY_HEADS, slots, VALUE_DIM)
    mask_ptr,  # (batch, heads, TOKENS, slots): added to the scores; with BOOL_MASK nonzero where a query sees; or None
    span_start_ptr,  # (batch or 1,) first slot that some query sees, or None
    span_end_ptr,  # (batch or 1,) end of these slots (exclusive), or None
    split_output_ptr,  # (batch, KEY_HEADS, QUERIES, splits, VALUE_DIM) float32
    split_lse_ptr,  # (batch, KEY_HEADS, QUERIES, splits) float32
    scale,
    num_slots,
    stride_query_row,
    stride_query_head,
    stride_query_token,
    stride_key_row,
    stride_key_head,
    stride_key_slot,
    stride_value_row,
    stride_value_head,
    stride_value_slot,
    stride_mask_row,
    stride_mask_head,
    stride_mask_token,
    stride_span_row,
    KEY_HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    QUERIES: tl.constexpr,  # of a key head: the tokens of the first head of its group, of the second, ...
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BOOL_MASK: tl.constexpr,
    UPCAST: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,  # blocks of slots in a split; None reads the bound from the span
    BLOCK_M: tl.constexpr,  # queries
    BLOCK_N: tl.constexpr,  # slots
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    CHUNK_DIM: tl.constexpr,  # dimensions multiplied at a time
):
    """Store the attention of one key head's queries over one split of one row, and its log-sum-exp."""
    split, num_splits = tl.program_id(0), tl.num_programs(0)
    row = (tl.program_id(1) // KEY_HEADS).to(tl.int64)
    key_head = (tl.program_id(1) % KEY_HEADS).to(tl.int64)
    split_start, split_end = 0, num_slots
    if span_start_ptr is not None:
        split_start = tl.load(span_start_ptr + row * stride_span_row).to(tl.int32)
        split_end = tl.load(span_end_ptr + row * stride_span_row).to(tl.int32)
    split_size = tl.cdiv(tl.cdiv(split_end - split_start, BLOCK_N), num_splits) * BLOCK_N
    split_start += split * split_size
    split_end = tl.minimum(split_start + split_size, split_end)

    offs_m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = key_head * (QUERIES // TOKENS) + offs_m // TOKENS  # among all query heads
    token = offs_m % TOKENS
    mask_m = offs_m < QUERIES
    offs_chunk, offs_dim, offs_value = tl.arange(0, CHUNK_DIM), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_VALUE)
    query_ptrs = query_ptr + row * stride_query_row + head * stride_query_head + token * stride_query_token
    key_ptr = key_ptr + row * stride_key_row + key_head * stride_key_head
    value_ptr = value_ptr + row * stride_value_row + key_head * stride_value_head
    if mask_ptr is not None:
        mask_ptr += row * stride_mask_row
        mask_ptrs = mask_ptr + head * stride_mask_head + token.to(tl.int64) * stride_mask_token
    if CHUNK_DIM == BLOCK_DIM:
        q = tl.load(
            query_ptrs[:, None] + offs_dim[None, :], mask=mask_m[:, None] & (offs_dim < DIM)[None, :], other=0.0
        )
        if UPCAST:
            q = q.to(tl.float32)

    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)  # running maximum of the scores
    l_i = tl.zeros([BLOCK_M], tl.float32)  # running Σ exp(score - m_i)
    acc = tl.zeros([BLOCK_M, BLOCK_VALUE], tl.float32)
    for block in range(0, tl.cdiv(split_end - split_start, BLOCK_N) if NUM_BLOCKS is None else NUM_BLOCKS):
        offs_n = split_start + block * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = offs_n < split_end
        slots = offs_n.to(tl.int64)
        if CHUNK_DIM == BLOCK_DIM:
            k = tl.load(
                key_ptr + slots[:, None] * stride_key_slot + offs_dim[None, :],
                mask=mask_n[:, None] & (offs_dim < DIM)[None, :],
                other=0.0,
            )
            if UPCAST:
                k = k.to(tl.float32)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        else:
            scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for first_dim in range(0, BLOCK_DIM, CHUNK_DIM):
                offs_d = first_dim + offs_chunk
                q = tl.load(
                    query_ptrs[:, None] + offs_d[None, :], mask=mask_m[:, None] & (offs_d < DIM)[None, :], other=0.0
                )
                k = tl.load(
                    key_ptr + slots[:, None] * stride_key_slot + offs_d[None, :],
                    mask=mask_n[:, None] & (offs_d < DIM)[None, :],
                    other=0.0,
                )
                scores = tl.dot(q.to(tl.float32), tl.trans(k.to(tl.float32)), scores, input_precision="ieee")
        scores *= scale
        if mask_ptr is not None:
            bias = tl.load(mask_ptrs[:, None] + offs_n[None, :], mask=mask_m[:, None] & mask_n[None, :], other=0)
            if BOOL_MASK:
                scores = tl.where(bias != 0, scores, float("-inf"))
            else:
                scores += bias.to(tl.float32)
        scores = tl.where(mask_n[None, :], scores, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(scores, axis=1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # -inf: the query has seen nothing yet
        p = tl.exp(scores - shift[:, None])
        rescale = tl.exp(m_i - shift)
        l_i = l_i * rescale + tl.sum(p, axis=1)
        v = tl.load(
            value_ptr + slots[:, None] * stride_value_slot + offs_value[None, :],
            mask=mask_n[:, None] & (offs_value < VALUE_DIM)[None, :],
            other=0.0,
        )
        if UPCAST:
            v = v.to(tl.float32)
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        m_i = m_new

    seen = l_i > 0.0
    offs = ((row * KEY_HEADS + key_head) * QUERIES + offs_m) * num_splits + split
    lse = tl.where(seen, m_i + tl.log(tl.where(seen, l_i, 1.0)), float("-inf"))
    tl.store(split_lse_ptr + offs, lse, mask=mask_m)
    tl.store(
        split_output_ptr + offs[:, None] * VALUE_DIM + offs_value[None, :],
        acc / tl.where(seen, l_i, 1.0)[:, None],
        mask=mask_m[:, None] & (offs_value < VALUE_DIM)[None, :],
    )


@triton.jit(do_not_specialize=["num_splits"])
def _combine_splits_kernel(
    split_output_ptr,  # (batch, heads, TOKENS, splits, VALUE_DIM) float32: (KEY_HEADS, QUERIES) is (heads, TOKENS)
    split_lse_ptr,  # (batch, heads, TOKENS, splits) float32
    output_ptr,  # (batch, heads, TOKENS, VALUE_DIM)
    num_splits,
    stride_output_row,
    stride_output_head,
    stride_output_token,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    NUM_SPLITS_PADDED: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """Store the attention of one query: its splits' outputs, weighted by the softmax of their log-sum-exps."""
    query = tl.program_id(0).to(tl.int64)
    offs_lse = tl.arange(0, NUM_SPLITS_PADDED)
    offs_value = tl.arange(0, BLOCK_VALUE)
    lse_ptr = split_lse_ptr + query * num_splits
    lses = tl.load(lse_ptr + offs_lse, mask=offs_lse < num_splits, other=float("-inf"))
    largest = tl.max(lses, axis=0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)  # -inf: the query sees nothing at all
    total = tl.sum(tl.exp(lses - shift), axis=0)
    acc = tl.zeros([BLOCK_SPLITS, BLOCK_VALUE], tl.float32)
    for first_split in range(0, NUM_SPLITS_PADDED, BLOCK_SPLITS):
        offs_split = first_split + tl.arange(0, BLOCK_SPLITS)
        mask_split = offs_split < num_splits
        weights = tl.exp(tl.load(lse_ptr + offs_split, mask=mask_split, other=float("-inf")) - shift)
        outputs = tl.load(
            split_output_ptr + (query * num_splits + offs_split)[:, None] * VALUE_DIM + offs_value[None, :],
            mask=mask_split[:, None] & (offs_value < VALUE_DIM)[None, :],
            other=0.0,
        )
        acc += outputs * weights[:, None]
    row, head, token = query // TOKENS // HEADS, query // TOKENS % HEADS, query % TOKENS
    offs = row * stride_output_row + head * stride_output_head + token * stride_output_token
    output = tl.sum(acc, axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(output_ptr + offs + offs_value, output.to(output_ptr.dtype.element_ty), mask=offs_value < VALUE_DIM)


def few_query_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    span: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute :func:`decoding.kernels.few_query_attention.few_query_attention`, (batch, heads, tokens, value dim)."""
    batch, heads, tokens, dim = query.shape
    key_heads, num_slots, value_dim = value.shape[1:]
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    span_start, span_end = span or (None, None)
    stride_span = int(span_start is not None and len(span_start) > 1)
    if mask is not None:
        mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
        mask = (mask if mask.stride(3) == 1 else mask.contiguous()).expand(batch, heads, -1, -1)
    half = query.dtype == key.dtype == value.dtype in (torch.float16, torch.bfloat16)
    queries = heads // key_heads * tokens
    block_m = min(MAX_BLOCK_M if half else MAX_BLOCK_M_FP32, max(16, triton.next_power_of_2(queries)))
    block_dim, block_value = (max(16, triton.next_power_of_2(size)) for size in (dim, value_dim))
    # 32 KB of keys and values at a time in half precision: three stages of it, twice, fill a multiprocessor's shared
    # memory. The ordinary cores hold what they multiply in registers.
    block_n = max(32, min(128, 8192 // max(block_dim, block_value))) if half else 16
    num_programs = batch * key_heads * triton.cdiv(queries, block_m)
    num_splits = max(1, min(FILLING // num_programs, triton.cdiv(num_slots, block_n)))
    split_output = torch.empty(
        batch, key_heads, queries, num_splits, value_dim, dtype=torch.float32, device=query.device
    )
    split_lse = torch.empty(batch, key_heads, queries, num_splits, dtype=torch.float32, device=query.device)
    output = torch.empty(batch, tokens, heads, value_dim, dtype=query.dtype, device=query.device).transpose(1, 2)
    with torch.cuda.device_of(query):  # Triton launches on the current device
        _split_attention_kernel[(num_splits, batch * key_heads, triton.cdiv(queries, block_m))](
            query, key, value, mask, span_start, span_end, split_output, split_lse, scale, num_slots,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
            *(mask.stride()[:3] if mask is not None else (0, 0, 0)), stride_span,
            KEY_HEADS=key_heads, TOKENS=tokens, QUERIES=queries, DIM=dim, VALUE_DIM=value_dim,
            BOOL_MASK=mask is not None and mask.dtype == torch.uint8, UPCAST=not half or interpreted(),
            # in the interpreter of Triton 3.6, range() takes no bound that is known at run time only
            NUM_BLOCKS=triton.cdiv(triton.cdiv(num_slots, block_n), num_splits) if interpreted() else None,
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_DIM=block_dim, BLOCK_VALUE=block_value,
            CHUNK_DIM=block_dim if half else min(32, block_dim),
            num_warps=8 if block_m * block_value >= 8192 else 4, num_stages=3,
        )  # fmt: skip
        _combine_splits_kernel[(batch * heads * tokens,)](
            split_output, split_lse, output, num_splits, *output.stride()[:3],
            HEADS=heads, TOKENS=tokens, VALUE_DIM=value_dim,
            NUM_SPLITS_PADDED=triton.next_power_of_2(num_splits),
            BLOCK_SPLITS=min(16, triton.next_power_of_2(num_splits)), BLOCK_VALUE=block_value,
        )  # fmt: skip
    return output
