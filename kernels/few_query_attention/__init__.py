"""Attention of a handful of query tokens over a long cache: branches side by side, or the one token of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.kernels.backend import choose
from decoding.kernels.few_query_attention.eager import few_query_attention_eager
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
    """softmax(q·Kᵀ·scale + mask)·V, the query heads of a group reading their one key head together.

    On a GPU the keys are split over as many programs as fill it, whatever the batch, and each key and value is read
    once; torch's memory-efficient attention, which is what a mask leaves it, gives a row of one key head to one
    multiprocessor.

    Args:
        query: (batch, heads, tokens, dim), float32, float16 or bfloat16. Made for tokens times heads a key head up to
            64; beyond, keys are read once for each 64.
        key: (batch, key heads, slots, dim), views of a cache with spare room included; ``heads`` is a multiple of
            ``key heads``.
        value: (batch, key heads, slots, value dim).
        mask: (batch or 1, heads or 1, tokens, slots): added to the scores, or bool, true where a query looks. None: all
            look at everything. A query from which False or the dtype's minimum hides every slot gets something finite
            that means nothing.
        scale: of the products; None is 1 / √dim.
        span: of each row the first slot that some query sees and the one behind the last (:func:`seen_span`). The
            kernel reads nothing outside of it, whatever stands there; the torch forms, which would have to ask the
            device for it, leave it to the mask, and what the mask hides must then be finite.
        backend: "auto", "triton" or "torch"; see :func:`decoding.kernels.backend.choose`.

    Returns:
        (batch, heads, tokens, value dim) in the dtype of ``query``; softmax and sums are float32.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run (``BackendError``).
    """
    _check_shapes(query, key, value, mask)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if choose(backend, query.device) == "triton":
        from decoding.kernels.few_query_attention.triton import few_query_attention_triton

        return few_query_attention_triton(query, key, value, mask, scale, span)
    return few_query_attention_eager(query, key, value, mask, scale)


def seen_span(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of a mask (rows, heads, tokens, slots) the first slot that some query sees and the one behind the
    last, (rows,) int64 each, found without waiting for the device; (slots, 0) for a row in which nobody sees anything.

    One mask serves every layer of a forward pass, and so does its span.
    """
    # Biases of positions may stand on top of a dtype's minimum.
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    seen = seen.any(2).any(1)  # (rows, slots)
    slots = torch.arange(seen.shape[1], device=mask.device)
    return torch.where(seen, slots, len(slots)).amin(1), torch.where(seen, slots + 1, 0).amax(1)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    whole = query.dim() == key.dim() == value.dim() == 4 and key.shape[1] > 0
    if (
        not whole
        or query.shape[0] != key.shape[0]
        or query.shape[3] != key.shape[3]
        or key.shape[:3] != value.shape[:3]
        or query.shape[1] % key.shape[1]
    ):
        raise ValueError(
            f"{shapes}: accepted are (batch, heads, tokens, dim), (batch, key heads, slots, dim) and (batch, key "
            "heads, slots, value dim), heads a multiple of key heads"
        )
    tokens, slots = query.shape[2], key.shape[2]
    if mask is not None and (
        mask.dim() != 4
        or mask.shape[2:] != (tokens, slots)
        or mask.shape[0] not in (1, query.shape[0])
        or mask.shape[1] not in (1, query.shape[1])
    ):
        raise ValueError(
            f"mask {tuple(mask.shape)}: accepted is (batch or 1, heads or 1, tokens, slots) with batch, heads, tokens, "
            f"slots = {(*query.shape[:3], slots)}"
        )
