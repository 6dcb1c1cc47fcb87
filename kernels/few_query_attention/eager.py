"""Attention of a few query tokens in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["few_query_attention_eager", "grouped_mask"]

# Where a CPU's two matrix products over all slots beat torch's fused attention: float32, two cores, 4 key heads of 64
# and 32k slots, 1, 4 and 5 queries a head: 1.75 against 1.95 ms, 2.6 against 3.1, 3.1 against 3.6; heads of 128: 3.6
# against 5.4, 4.6 against 6.0, 5.8 against 7.2; one core alike. At 8k slots they take 0.99, 0.93 and 1.03 of the time;
# at 4k, and with 2, 3 or 8 queries, they are slower.
QUERIES_BY_PRODUCTS = (1, 4, 5)
LONG = 8192


def few_query_attention_eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Compute :func:`decoding.kernels.few_query_attention.few_query_attention`, (batch, heads, tokens, value dim).

    The heads of a group become more queries of their one key head, so that keys and values need not be copied for each.
    The mask is given as :func:`grouped_mask` lays it out.
    """
    batch, heads, tokens, _ = query.shape
    key_heads, slots = key.shape[1:3]
    groups = heads // key_heads
    queries = query.reshape(batch, key_heads, groups * tokens, -1)
    if groups * tokens in QUERIES_BY_PRODUCTS and slots >= LONG and _allows_products(query, key, value):
        output = _attend_by_products(queries, key, value, mask, scale)
    else:
        output = torch.nn.functional.scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scale)
    return output.reshape(batch, heads, tokens, -1)


def grouped_mask(mask: Tensor, heads: int, key_heads: int) -> Tensor:
    """Lay out a mask (rows, heads or 1, tokens, slots) for queries whose group of heads stands in one key head.

    One mask serves every layer of a forward pass, and so does its layout.

    Returns:
        (rows, key heads or 1, groups·tokens, slots).
    """
    groups = heads // key_heads
    if groups == 1:
        return mask
    for_all_heads = mask.shape[1] == 1
    return mask.repeat(1, 1, groups, 1) if for_all_heads else mask.unflatten(1, (key_heads, groups)).flatten(2, 3)


def _allows_products(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether two products can serve: float32 on a CPU, no autograd, rows and heads of the cache evenly apart."""
    if query.device.type != "cpu" or query.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        return False
    return all(x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1) for x in (key, value))


def _attend_by_products(queries: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Compute keys times queries, the softmax, and weights times values, all heads in one product each."""
    products = torch.bmm(key.flatten(0, 1), (queries * scale).flatten(0, 1).transpose(1, 2))  # (heads, slots, queries)
    transposed = products.transpose(1, 2).unflatten(0, queries.shape[:2])
    if mask is None:
        scores = transposed.contiguous()
    elif mask.dtype == torch.bool:
        scores = transposed.masked_fill(~mask, torch.finfo(transposed.dtype).min).contiguous()
    else:
        # One pass adds the mask and makes the scores contiguous.
        scores = torch.add(transposed, mask, out=transposed.new_empty(transposed.shape))
    return torch.bmm(scores.softmax(-1).flatten(0, 1), value.flatten(0, 1))
