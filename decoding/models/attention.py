"""Attention of a few query tokens over a cache: the branches of tree attention, and the one token of a step.

With a mask and more than one query token, transformers' ``sdpa`` attention repeats keys and values once per query
head of each group: for branches that would copy the whole cache at each token. The heads of a group can also be laid
out as more query tokens of their one key head: same numbers, nothing copied. (transformers does so itself for one token
with a mask.) :func:`decoding.kernels.few_query_attention.few_query_attention` computes that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from decoding.kernels.backend import choose
from decoding.kernels.few_query_attention import few_query_attention, seen_span
from decoding.kernels.few_query_attention.eager import few_query_attention_eager, grouped_mask

__all__ = ["grouped_heads", "install_attention"]

# Queries per key head (heads of its group times tokens) up to which reading the keys dominates the cost.
FEW = 64

# With fewer slots only the grouping of heads saves time. On a CPU the forms that differ begin at 8192. On a GPU the
# number is an estimate, not a measurement: keys and values of one head, 128 dimensions by 2048 slots, are 1 MB in half
# precision, some 12 us of the one multiprocessor that torch uses for them; two launches of Triton cost the host that
# much more than one of torch.
LONG = 2048

WIDEST = 256  # the most dimensions of a head that the kernel was compiled and tested with


@contextmanager
def grouped_heads() -> Iterator[None]:
    """Let ``sdpa`` attention copy no keys or values of grouped-query models, and compute few query tokens in the form
    that is quickest for them. The context holds one forward pass of this thread.
    """
    install_attention()
    token = _within.set({})
    try:
        yield
    finally:
        _within.reset(token)


# What was made of the masks of the pass within the context, once for all the layers that share one; None outside of it.
_within: ContextVar[dict[Any, tuple[Tensor, Any]] | None] = ContextVar("grouped_heads", default=None)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """``sdpa`` for every model; differs from transformers' own only within :func:`grouped_heads`."""
    made = _within.get()
    if made is None or not _fits(query, key, attention_mask, kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling")
    if _by_kernel(query, key, value):
        span = None if attention_mask is None else _once(made, attention_mask, seen_span)
        output = few_query_attention(query, key, value, attention_mask, scale, span, "triton")
    else:
        heads, key_heads = query.shape[1], key.shape[1]
        mask = None if attention_mask is None else _once(made, attention_mask, grouped_mask, heads, key_heads)
        output = few_query_attention_eager(query, key, value, mask, query.shape[3] ** -0.5 if scale is None else scale)
    return output.transpose(1, 2).contiguous(), None


def _fits(query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """True where this module computes the attention of these queries, and not transformers."""
    heads, tokens = query.shape[1:3]
    groups, slots = heads // key.shape[1], key.shape[2]
    if (groups == 1 and slots < LONG) or query.device.type not in ("cpu", "cuda"):
        return False
    if kwargs.get("dropout") or any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "cache")):
        return False
    if mask is None:
        # One token attends to all slots. On a GPU torch's flash attention is made for it, grouped or not; a CPU's reads
        # keys and values once for each head of a group (32 heads on 8, 4k slots: 1.19 ms; grouped 0.56; 32k: 15 and 6).
        return tokens == 1 and query.device.type == "cpu"
    if mask.dim() != 4 or mask.shape[2:] != (tokens, slots) or mask.shape[1] not in (1, heads):
        return False
    return groups * tokens <= FEW or (groups > 1 and mask.dtype != torch.bool)


def _by_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """True where the kernel may compute this attention and there is one for the device."""
    rows = query.shape[1] // key.shape[1] * query.shape[2]
    if rows > FEW or key.shape[2] < LONG or max(key.shape[3], value.shape[3]) > WIDEST:
        return False
    if query.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return not differentiated and choose("auto", query.device) == "triton"


def _once(made: dict[Any, tuple[Tensor, Any]], mask: Tensor, make: Callable[..., Any], *given: int) -> Any:
    """What ``make`` makes of a mask, computed once for all the layers that share it."""
    place = (make, *given, mask.data_ptr(), mask.shape, mask.stride(), mask.device)
    if place not in made:
        made[place] = mask, make(mask, *given)  # holds the mask, or another tensor could be put at its address
    return made[place][1]


def install_attention() -> None:
    """Register this module's attention as ``sdpa`` where transformers' own is; one that the user registered stays.

    A separate name, set for one model, would be cleaner. But transformers compares a model's attention with "sdpa" in
    many places (masks, ``is_causal``, compilation), and a name that is set for one pass would be set for the model's
    other threads as well.
    """
    if AttentionInterface()["sdpa"] is sdpa_attention_forward:
        AttentionInterface.register("sdpa", _attention)
