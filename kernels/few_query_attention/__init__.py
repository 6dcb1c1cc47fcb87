"""Attention of a few query tokens over a long cache: the branches of a step, or its one token."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.kernels.backend import choose
from decoding.kernels.few_query_attention.eager import few_query_attention_eager, grouped_mask
from decoding.kernels.few_query_attention.naive import few_query_attention_naive

__all__ = ["few_query_attention", "few_query_attention_naive", "seen_span"]


def few_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    span: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute softmax(q·Kᵀ·scale + mask)·V; the query heads of a group read their one key head together.

    On a GPU the keys are split over as many programs as fill it, whatever the batch, and each key and value is read
    once. With a mask torch is left with its memory-efficient attention, which runs a row of one key head on one
    multiprocessor.

    Args:
        query: (batch, heads, tokens, dim), float32, float16 or bfloat16. Made for up to 64 queries a key head (tokens
            times heads of its group); the keys are read once for each 64.
        key: (batch, key heads, slots, dim), views of a cache with spare slots included; ``heads`` is a multiple of
            ``key heads``.
        value: (batch, key heads, slots, value dim).
        mask: (batch or 1, heads or 1, tokens, slots), added to the scores; or bool, true where a query sees the slot.
            None lets every query see every slot. A query from which False or the dtype's minimum hides every slot gets
            finite numbers without meaning.
        scale: factor of the products; None is 1 / √dim.
        span: first slot that some query of a row sees, and the end of these slots (:func:`seen_span`). The kernel reads
            no slot outside, whatever it holds. The torch forms would have to wait for the device to use it: they rely
            on the mask, and hidden slots must hold finite numbers.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.

    Returns:
        (batch, heads, tokens, value dim) in the dtype of ``query``; softmax and sums are float32.

    Raises:
        ValueError: shapes do not fit, or the backend cannot run (``BackendError``).
    """
    _check_shapes(query, key, value, mask)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if choose(backend, query.device) == "triton":
        from decoding.kernels.few_query_attention.fused import few_query_attention_triton

        return few_query_attention_triton(query, key, value, mask, scale, span)
    grouped = None if mask is None else grouped_mask(mask, query.shape[1], key.shape[1])
    return few_query_attention_eager(query, key, value, grouped, scale)


def seen_span(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Find the slots between which a row's queries see anything, without waiting for the device.

    One mask serves every layer of a forward pass, and so does its span.

    Args:
        mask: (rows, heads, tokens, slots), bool or added to the scores.

    Returns:
        The first slot that some query sees and the end of these slots (exclusive), (rows,) int64 each; (slots, 0) for a
        row in which no query sees anything.
    """
    # Half the minimum: a position bias may be added to a dtype's minimum.
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    seen = seen.any(2).any(1)  # (rows, slots)
    slots = torch.arange(seen.shape[1], device=mask.device)
    return torch.where(seen, slots, len(slots)).amin(1), torch.where(seen, slots + 1, 0).amax(1)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    four_dimensions = query.dim() == key.dim() == value.dim() == 4 and key.shape[1] > 0
    if (
        not four_dimensions
        or query.shape[0] != key.shape[0]
        or query.shape[3] != key.shape[3]
        or key.shape[:3] != value.shape[:3]
        or query.shape[1] % key.shape[1]
    ):
        raise ValueError(
            "expected query (batch, heads, tokens, dim), key (batch, key heads, slots, dim) and value (batch, key "
            "heads, slots, value dim), heads a multiple of key heads; got "
            f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        )
    tokens, slots = query.shape[2], key.shape[2]
    if mask is not None and (
        mask.dim() != 4
        or mask.shape[2:] != (tokens, slots)
        or mask.shape[0] not in (1, query.shape[0])
        or mask.shape[1] not in (1, query.shape[1])
    ):
        raise ValueError(
            "mask must be (batch or 1, heads or 1, tokens, slots) with batch, heads, tokens, slots = "
            f"{(*query.shape[:3], slots)}, got {tuple(mask.shape)}"
        )
