"""Attention as the formula defines it: the oracle of the other forms."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["few_query_attention_naive"]


def few_query_attention_naive(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Compute softmax(q·Kᵀ·scale + mask)·V in float64, one query of one head at a time.

    Arguments as in :func:`decoding.kernels.few_query_attention.few_query_attention`.

    Returns:
        (batch, heads, tokens, value dim) float64.
    """
    batch, heads, tokens, _ = query.shape
    groups = heads // key.shape[1]
    output = torch.zeros(batch, heads, tokens, value.shape[3], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                keys, values = key[b, h // groups].double(), value[b, h // groups].double()
                scores = keys @ query[b, h, t].double() * scale
                if mask is not None:
                    row = mask[b % mask.shape[0], h % mask.shape[1], t]
                    scores = scores.where(row, -torch.inf) if row.dtype == torch.bool else scores + row.double()
                output[b, h, t] = scores.softmax(0) @ values
    return output
