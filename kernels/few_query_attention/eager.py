"""Attention of a handful of query tokens in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["few_query_attention_eager"]

# Where a CPU's two matrix products over all slots beat torch's fused form: float32, two cores, 4 key heads of 64 and
# 32k slots, 1, 4 and 5 queries a head: 1.75 against 1.95 ms, 2.6 against 3.1, 3.1 against 3.6; heads of 128: 3.6
# against 5.4, 4.6 against 6.0, 5.8 against 7.2; one core alike. At 8k slots it is 0.99, 0.93 and 1.03 of the time;
# at 4k, and with 2, 3 or 8 queries, they lose.
PRODUCTS = (1, 4, 5)
LONG = 8192


def few_query_attention_eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """See :func:`decoding.kernels.few_query_attention.few_query_attention`.

    The heads of a group stand side by side as more queries of their one key head, so that nothing is copied for each.
    """
    batch, heads, tokens, _ = query.shape
    key_heads, slots = key.shape[1:3]
    groups = heads // key_heads
    queries = query.reshape(batch, key_heads, groups * tokens, -1)
    if mask is not None and groups > 1:
        one = mask.shape[1] == 1
        mask = mask.repeat(1, 1, groups, 1) if one else mask.unflatten(1, (key_heads, groups)).flatten(2, 3)
    if groups * tokens in PRODUCTS and slots >= LONG and _plain_on_a_cpu(query, key, value):
        output = _products(queries, key, value, mask, scale)
    else:
        output = torch.nn.functional.scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scale)
    return output.reshape(batch, heads, tokens, -1)


def _plain_on_a_cpu(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the two products may serve: float32 without autograd, rows and heads of the cache evenly apart."""
    if query.device.type != "cpu" or query.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value)):
        return False
    return all(each.shape[0] == 1 or each.stride(0) == each.shape[1] * each.stride(1) for each in (key, value))


def _products(queries: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Keys times queries, which leaves the scores slot by slot; softmax; weights times values. All heads at once."""
    scores = torch.bmm(key.flatten(0, 1), (queries * scale).flatten(0, 1).transpose(1, 2))  # (heads, slots, rows)
    turned = scores.transpose(1, 2).unflatten(0, queries.shape[:2])
    if mask is None:
        scores = turned.contiguous()
    elif mask.dtype == torch.bool:
        scores = turned.masked_fill(~mask, torch.finfo(turned.dtype).min).contiguous()
    else:
        scores = torch.add(turned, mask, out=turned.new_empty(turned.shape))  # turned in the same pass
    return torch.bmm(scores.softmax(-1).flatten(0, 1), value.flatten(0, 1))
