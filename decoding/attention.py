"""Attention of branches in grouped-query models, without a copy of keys and values.

With a mask and more than one query token, transformers' ``sdpa`` attention repeats keys and values once per query
head of each group: for branches that would copy the whole cache at each token. The heads of a group can as well stand
side by side as more query tokens of their one key head: same numbers, nothing copied. (transformers does so itself for
one token.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["grouped_heads"]

_within: ContextVar[bool] = ContextVar("grouped_heads", default=False)


@contextmanager
def grouped_heads() -> Iterator[None]:
    """Within this context, in this thread, ``sdpa`` attention of grouped-query models copies no keys or values."""
    token = _within.set(True)
    try:
        yield
    finally:
        _within.reset(token)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """``sdpa`` for every model; differs from transformers' own only within :func:`grouped_heads`."""
    groups = query.shape[1] // key.shape[1]
    plain = attention_mask is None or attention_mask.shape[1] != 1 or kwargs.get("position_bias") is not None
    if not _within.get() or groups == 1 or plain or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    assert attention_mask is not None
    batch, heads, tokens, _ = query.shape
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * tokens, -1),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),  # (batch, 1, groups·tokens, slots)
        scale=kwargs.get("scaling"),
    )
    return output.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


# The registry is transformers' own way to name attention functions; under this name they differ as said above.
AttentionInterface.register("sdpa", _attention)
