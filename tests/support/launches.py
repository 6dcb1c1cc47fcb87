"""Launches that stand for those on a GPU: each kernel with sizes of real models, on tensors without storage.

``tests/kernels/test_ahead_of_time.py`` compiles them for an H100. Kernels are imported when they are launched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LAUNCHES", "Launch"]


@dataclass(frozen=True)
class Launch:
    """A call that launches kernels.

    Attributes:
        call: function that launches them, on tensors of the meta device.
        wide: names of the kernels that must read memory 16 bytes at a time.
    """

    call: Callable[[], object]
    wide: tuple[str, ...] = ()


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def history(batch: int, k: int, slots: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return candidates, history and inverse norms."""
    return meta(batch, k, dim, dtype=dtype), meta(batch, slots, dim, dtype=dtype), meta(batch, slots)


def penalty(batch: int, k: int, slots: int, dim: int, dtype: torch.dtype, rows: bool = False) -> None:
    """Launch the degeneration penalty; ``rows``: with bounds of each row on the device, and positions."""
    from decoding.kernels.degeneration_penalty.fused import degeneration_penalty_triton

    bounds = meta(batch, dtype=torch.int64) if rows else None
    degeneration_penalty_triton(*history(batch, k, slots, dim, dtype), bounds, bounds, positions=rows)


def append(dim: int, dtype: torch.dtype) -> None:
    """Launch the append of one state to the history."""
    from decoding.kernels.degeneration_penalty.fused import append_triton

    hidden, states, norms = history(8, 1, 8192, dim, dtype)
    append_triton(states, norms, hidden, 4099)


def selection(k: int, rows: bool = False) -> None:
    """Launch the choice among k candidates; ``rows``: with a weight and a number of candidates for each row."""
    from decoding.kernels.selection.fused import select_triton

    alpha, counts = (meta(8), meta(8, dtype=torch.int64)) if rows else (0.6, None)
    candidates, probabilities = meta(8, k, dtype=torch.int64), meta(8, k)
    states = history(8, k, 8192, 4096, torch.bfloat16)
    select_triton(meta(8, 128256), probabilities, candidates, alpha, *states, None, 8000, counts)


def contrast(
    batch: int, vocab: int, dtype: torch.dtype, layers: int = 0, guided: bool = False, rows: bool = False, **form: Any
) -> None:
    """Launch the contrast of expert and amateur, with ``layers`` lower layers of both.

    ``rows``: with an α for each row, and which lower layers count there.
    """
    from decoding.kernels.contrast.fused import contrast_triton

    logits, lower = meta(batch, vocab, dtype=dtype), meta(layers, batch, vocab, dtype=dtype) if layers else None
    counted = meta(layers, batch, dtype=torch.bool) if rows and layers else None
    contrast_triton(
        logits, logits, guided=logits if guided else None, lower=lower, lower_amateur=lower, layers=counted,
        alpha=meta(batch) if rows else 0.1, **form,
    )  # fmt: skip


def dola(batch: int, vocab: int, dtype: torch.dtype, layers: int, kind: str = "dola", rows: bool = False) -> None:
    """Launch the divergence of layers, and the contrast with the chosen one; ``rows``: with those of each row."""
    from decoding.kernels.contrast.fused import contrast_triton
    from decoding.kernels.layer_divergence.fused import layer_divergence_triton

    final, premature = meta(batch, vocab, dtype=dtype), meta(layers, batch, vocab, dtype=dtype)
    candidates = meta(layers, batch, dtype=torch.bool) if rows else None
    _, layer = layer_divergence_triton(final, premature, kind, candidates)
    contrast_triton(final, premature, layer=layer, alpha=meta(batch) if rows else 0.1)


def attention(
    batch: int,
    heads: int,
    key_heads: int,
    tokens: int,
    slots: int,
    dim: int,
    dtype: torch.dtype,
    bool_mask: bool = False,
) -> None:
    """Launch the attention of a few query tokens over a cache with spare slots; a bool mask comes with a span a row."""
    from decoding.kernels.few_query_attention.fused import few_query_attention_triton

    query = meta(batch, tokens, heads, dim, dtype=dtype).transpose(1, 2)
    cache = meta(batch, key_heads, slots + 300, dim, dtype=dtype)[:, :, :slots]
    mask = meta(batch, 1, tokens, slots, dtype=torch.bool if bool_mask else dtype)
    bound = meta(batch, dtype=torch.int64)
    few_query_attention_triton(query, cache, cache, mask, 0.1, (bound, bound) if bool_mask else None)


COSINES, APPEND = ("_tile_cosines_kernel",), ("_append_kernel",)
SPLIT, COMBINE = ("_split_attention_kernel",), ("_combine_splits_kernel",)
CONTRAST = ("contrast_statistics_kernel", "contrast_scores_kernel")
DOLA = ("_layer_statistics_kernel", "_partial_divergence_kernel", *CONTRAST)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

LAUNCHES: dict[str, Launch] = {
    "penalty-bf16-B8-K5-S8192-D4096": Launch(lambda: penalty(8, 5, 8192, 4096, BF16), COSINES),
    "penalty-bf16-B1-K4-S1024-D2048-rows": Launch(lambda: penalty(1, 4, 1024, 2048, BF16, rows=True), COSINES),
    "penalty-fp16-B8-K64-S131072-D16384": Launch(lambda: penalty(8, 64, 131072, 16384, FP16), COSINES),
    "penalty-bf16-B2-K5-S4096-D4097": Launch(lambda: penalty(2, 5, 4096, 4097, BF16)),
    "penalty-fp32-B1-K5-S8192-D4096": Launch(lambda: penalty(1, 5, 8192, 4096, FP32), COSINES),
    "penalty-fp32-B1-K64-S8192-D4096": Launch(lambda: penalty(1, 64, 8192, 4096, FP32), COSINES),
    "append-bf16-D4096": Launch(lambda: append(4096, BF16), APPEND),
    "append-fp32-D33": Launch(lambda: append(33, FP32)),
    "selection-K5": Launch(lambda: selection(5), COSINES),
    "selection-K1024": Launch(lambda: selection(1024)),
    "selection-K15-rows": Launch(lambda: selection(15, rows=True), COSINES),
    "attention-bf16-B1-H32-G8-Q4-S32768-D128-bool": Launch(
        lambda: attention(1, 32, 8, 4, 32768, 128, BF16, bool_mask=True), SPLIT + COMBINE
    ),
    "attention-bf16-B8-H32-G8-Q4-S32768-D64-bool": Launch(
        lambda: attention(8, 32, 8, 4, 32768, 64, BF16, bool_mask=True), SPLIT
    ),
    "attention-fp16-B1-H32-G32-Q4-S4099-D128": Launch(lambda: attention(1, 32, 32, 4, 4099, 128, FP16), COMBINE),
    "attention-bf16-B1-H64-G8-Q8-S131072-D128": Launch(lambda: attention(1, 64, 8, 8, 131072, 128, BF16), COMBINE),
    "attention-bf16-B1-H16-G4-Q16-S8192-D256": Launch(lambda: attention(1, 16, 4, 16, 8192, 256, BF16)),
    "attention-bf16-B2-H15-G5-Q5-S5000-D80": Launch(lambda: attention(2, 15, 5, 5, 5000, 80, BF16)),
    "attention-fp32-B1-H32-G8-Q4-S32768-D128": Launch(lambda: attention(1, 32, 8, 4, 32768, 128, FP32)),
    "attention-fp32-B1-H8-G1-Q8-S8192-D256-bool": Launch(
        lambda: attention(1, 8, 1, 8, 8192, 256, FP32, bool_mask=True), SPLIT + COMBINE
    ),
    "contrast-logits-bf16-B8-V128256": Launch(
        lambda: contrast(8, 128256, BF16, normalized=False, expert_weight=1.5, amateur_weight=0.5), CONTRAST
    ),
    "contrast-logits-bf16-B64-V128256-rows": Launch(
        lambda: contrast(64, 128256, BF16, rows=True, normalized=False, amateur_weight=meta(64)), CONTRAST
    ),
    "contrast-log_probs-fp16-B1-V32000": Launch(lambda: contrast(1, 32000, FP16, amateur_temperature=0.5), CONTRAST),
    "contrast-log_probs-bf16-B2-V50257": Launch(lambda: contrast(2, 50257, BF16)),
    "contrast-lol-bf16-B1-V128256-N4": Launch(
        lambda: contrast(1, 128256, BF16, 4, guided=True, lower_weight=0.1), CONTRAST
    ),
    "contrast-lol_entropy-fp32-B8-V262144-N4": Launch(
        lambda: contrast(8, 262144, FP32, 4, guided=True, by_entropy=True), CONTRAST
    ),
    "contrast-lol-bf16-B64-V128256-N4-rows": Launch(
        lambda: contrast(64, 128256, BF16, 4, guided=True, rows=True, lower_weight=meta(64)), CONTRAST
    ),
    "contrast-lol_entropy-bf16-B64-V128256-N4-rows": Launch(
        lambda: contrast(64, 128256, BF16, 4, guided=True, rows=True, by_entropy=True), CONTRAST
    ),
    "dola-bf16-B1-V128256-N16": Launch(lambda: dola(1, 128256, BF16, 16), DOLA),
    "dola-fp32-B8-V262144-N20-jensen_shannon": Launch(lambda: dola(8, 262144, FP32, 20, "jensen-shannon"), DOLA),
    "dola-bf16-B64-V128256-N16-rows": Launch(lambda: dola(64, 128256, BF16, 16, rows=True), DOLA),
    "dola-bf16-B2-V50257-N4": Launch(lambda: dola(2, 50257, BF16, 4)),
}
