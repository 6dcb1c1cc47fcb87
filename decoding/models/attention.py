"""Attention of a few query tokens over a cache: branches side by side, and the one token of a step.

With a mask and more than one query token, transformers' ``sdpa`` attention repeats keys and values once per query
head of each group: for branches that would copy the whole cache at each token. The heads of a group can as well stand
side by side as more query tokens of their one key head: same numbers, nothing copied. (transformers does so itself for
one token with a mask.) What then attends is :func:`decoding.kernels.few_query_attention.few_query_attention`.
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

from decoding.kernels.backend import choose
from decoding.kernels.few_query_attention import few_query_attention, seen_span

__all__ = ["grouped_heads", "install_attention"]

# Queries a key head, heads of its group times tokens, up to which keys are what an attention costs.
FEW = 64

# Fewer slots gain by nothing but the grouping of heads. On a CPU the forms that differ begin at 8192. On a GPU it is
# reckoned, not measured: a key head's 128 dimensions of 2048 slots are 1 MB in half precision, some 12 us of the one
# multiprocessor that torch gives them, which is what two launches of Triton cost the host more than one of torch.
LONG = 2048

WIDEST = 256  # dimensions of a head that the kernel was compiled and tested with

Span = tuple[Tensor, Tensor]


@contextmanager
def grouped_heads() -> Iterator[None]:
    """Within this context, which holds one forward pass of this thread, ``sdpa`` attention of grouped-query models
    copies no keys or values, and few query tokens attend in the form that is quickest for them.
    """
    install_attention()
    token = _within.set({})
    try:
        yield
    finally:
        _within.reset(token)


# Of the pass within the context, the spans of its masks; None outside of it.
_within: ContextVar[dict[Any, tuple[Tensor, Span]] | None] = ContextVar("grouped_heads", default=None)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """``sdpa`` for every model; differs from transformers' own only within :func:`grouped_heads`."""
    spans = _within.get()
    if spans is None or not _fits(query, key, attention_mask, kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    span, backend = None, "torch"
    if _by_kernel(query, key, value):
        span, backend = None if attention_mask is None else _span(attention_mask, spans), "triton"
    output = few_query_attention(query, key, value, attention_mask, kwargs.get("scaling"), span, backend)
    return output.transpose(1, 2).contiguous(), None


def _fits(query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Whether these queries attend here, and not as transformers has it."""
    heads, tokens = query.shape[1:3]
    groups, slots = heads // key.shape[1], key.shape[2]
    if (groups == 1 and slots < LONG) or query.device.type not in ("cpu", "cuda"):
        return False
    if kwargs.get("dropout") or any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "cache")):
        return False
    if mask is None:
        # One token looks at everything. On a GPU torch's flash attention is made for it, grouped or not; a CPU's reads
        # keys and values once for each head of a group (32 heads on 8, 4k slots: 1.19 ms; grouped 0.56; 32k: 15 and 6).
        return tokens == 1 and query.device.type == "cpu"
    if mask.dim() != 4 or mask.shape[2:] != (tokens, slots) or mask.shape[1] not in (1, heads):
        return False
    return groups * tokens <= FEW or (groups > 1 and mask.dtype != torch.bool)


def _by_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel may run, where there is one."""
    rows = query.shape[1] // key.shape[1] * query.shape[2]
    if rows > FEW or key.shape[2] < LONG or max(key.shape[3], value.shape[3]) > WIDEST:
        return False
    if query.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    differentiated = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    return not differentiated and choose("auto", query.device) == "triton"


def _span(mask: Tensor, spans: dict[Any, tuple[Tensor, Span]]) -> Span:
    """:func:`seen_span` of a mask, found once for all the layers that share it."""
    at = (mask.data_ptr(), mask.shape, mask.stride(), mask.device)
    if at not in spans:
        spans[at] = mask, seen_span(mask)  # the mask too, since what is freed leaves its address to another
    return spans[at][1]


def install_attention() -> None:
    """Register this module's attention as ``sdpa`` where transformers' own is; one that the user registered stays.

    A name of its own for each model would be cleaner. But transformers asks in many places whether a model's attention
    is called "sdpa" (for masks, ``is_causal``, compilation), and to switch a model's name for one pass would switch it
    for the model's other threads as well.
    """
    if AttentionInterface()["sdpa"] is sdpa_attention_forward:
        AttentionInterface.register("sdpa", _attention)
