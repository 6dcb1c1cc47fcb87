"""All contrasts of the family in Triton: one launch for the softmax statistics of each input, one for the scores.

The first launch reads each input once, one block of the vocabulary a program, so that a single row fills a GPU too. The
second reads each input again and writes the scores. With guidance the log-softmax of neither reading is needed first:
their shifts cancel, so maximum, log-sum-exp and entropy of the refocused expert are those of (1 + γ)·guided - γ·expert,
which both launches compute as they read.

Lower layers may exclude every plausible token of a row. Then the scores are launched twice: the first launch also
stores each block's maxima, and the second returns early for every row that still has a token.

Both kernels take the same inputs in the same order, spelled out in each: Triton could take them as one tuple, in which
pointers, shapes and strides would have numbers and no names.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.softmax_statistics import (
    block_of_program,
    choose_block_size,
    choose_num_warps,
    flatten_rows,
    load_logits,
    row_statistics,
    store_block_statistics,
)

__all__ = ["contrast_triton"]


@triton.jit(do_not_specialize=["num_rows", "num_blocks"])
def _contrast_statistics_kernel(
    expert_ptr,  # (rows, vocab)
    amateur_ptr,  # (rows, vocab), with layer_ptr (layers, rows, vocab)
    guided_ptr,  # (rows, vocab), or None
    layer_ptr,  # (rows,) int64, or None
    lower_ptr,  # (NUM_LOWER, rows, vocab)
    lower_amateur_ptr,  # (NUM_LOWER, rows, vocab)
    statistics_ptr,  # (distributions, rows, 3, blocks) float32
    stride_expert_row,
    stride_amateur_row,
    stride_guided_row,
    stride_lower_row,
    stride_lower_amateur_row,
    stride_amateur_layer,
    stride_lower_layer,
    stride_lower_amateur_layer,
    refocus_weight,
    amateur_scale,
    vocab_size,
    num_rows,
    num_blocks,
    NUM_LOWER: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Store the softmax statistics of one block of one row of one distribution.

    The distributions are the expert, its lower layers, the amateur and its lower layers, in this order.
    """
    row, block, offs, mask = block_of_program(vocab_size, num_blocks, BLOCK_SIZE)
    distribution = tl.program_id(1).to(tl.int64)
    if distribution == 0:
        x = _refocused_logits(
            expert_ptr, guided_ptr, row, stride_expert_row, stride_guided_row, offs, mask, refocus_weight
        )
    elif distribution == NUM_LOWER + 1:
        if layer_ptr is not None:
            amateur_ptr += tl.load(layer_ptr + row) * stride_amateur_layer
        x = load_logits(amateur_ptr + row * stride_amateur_row, offs, mask) * amateur_scale
    elif distribution <= NUM_LOWER:
        x = load_logits(lower_ptr + (distribution - 1) * stride_lower_layer + row * stride_lower_row, offs, mask)
    else:
        lower_amateur_ptr += (distribution - NUM_LOWER - 2) * stride_lower_amateur_layer
        x = load_logits(lower_amateur_ptr + row * stride_lower_amateur_row, offs, mask)
    store_block_statistics(x, statistics_ptr, distribution, row, block, num_rows, num_blocks, NUM_STATISTICS=3)


@triton.jit(do_not_specialize=["num_rows", "num_blocks", "num_score_blocks"])
def _contrast_scores_kernel(
    expert_ptr,
    amateur_ptr,
    guided_ptr,
    layer_ptr,
    lower_ptr,
    lower_amateur_ptr,
    statistics_ptr,
    maxima_ptr,  # (rows, 2, score_blocks) float32: best score, best expert logit of a token no layer excludes; or None
    scores_ptr,  # (rows, vocab) float32
    stride_expert_row,
    stride_amateur_row,
    stride_guided_row,
    stride_lower_row,
    stride_lower_amateur_row,
    stride_amateur_layer,
    stride_lower_layer,
    stride_lower_amateur_layer,
    refocus_weight,
    amateur_scale,
    vocab_size,
    num_rows,
    num_blocks,
    num_score_blocks,
    expert_weight,
    amateur_weight,
    lower_weight,
    lower_amateur_weight,
    log_alpha,
    NUM_LOWER: tl.constexpr,
    NORMALIZED: tl.constexpr,
    MASKED: tl.constexpr,
    BY_ENTROPY: tl.constexpr,
    FALLBACK: tl.constexpr,  # the second launch, for the rows that the first left without a token
    BLOCK_SIZE: tl.constexpr,
    NUM_BLOCKS_PADDED: tl.constexpr,
    NUM_SCORE_BLOCKS_PADDED: tl.constexpr,
):
    """Store the scores of one block of one row."""
    row, block, offs, mask = block_of_program(vocab_size, num_score_blocks, BLOCK_SIZE)
    if maxima_ptr is not None:
        maxima_ptr += row * 2 * num_score_blocks
    if FALLBACK:  # noqa: SIM102 - joined by `and`, the compiler would read maxima_ptr where it is None
        if _maximum(maxima_ptr, num_score_blocks, NUM_SCORE_BLOCKS_PADDED) != float("-inf"):
            return
    # The row's statistics of the expert, then of its lower layers; those of the amateur follow in the same way.
    expert_statistics_ptr = statistics_ptr + row * 3 * num_blocks
    stride_distribution = tl.cast(num_rows, tl.int64) * 3 * num_blocks
    amateur_statistics_ptr = expert_statistics_ptr + (NUM_LOWER + 1) * stride_distribution

    expert = _refocused_logits(
        expert_ptr, guided_ptr, row, stride_expert_row, stride_guided_row, offs, mask, refocus_weight
    )
    if layer_ptr is not None:
        amateur_ptr += tl.load(layer_ptr + row) * stride_amateur_layer
    amateur = load_logits(amateur_ptr + row * stride_amateur_row, offs, mask)
    excluded = expert == float("-inf")
    if NORMALIZED or MASKED:
        expert_max, expert_lse, entropy = row_statistics(expert_statistics_ptr, num_blocks, NUM_BLOCKS_PADDED)
    if FALLBACK:
        expert_max = _maximum(maxima_ptr + num_score_blocks, num_score_blocks, NUM_SCORE_BLOCKS_PADDED)
    if NORMALIZED:
        _, amateur_lse, _ = row_statistics(amateur_statistics_ptr, num_blocks, NUM_BLOCKS_PADDED)
        scores = expert - expert_lse - _weighted(amateur_weight, amateur * amateur_scale - amateur_lse)
    else:
        scores = expert_weight * expert - _weighted(amateur_weight, amateur)

    if BY_ENTROPY:
        weight_sum = tl.exp(-entropy)  # at least 1 / vocab, so no maximum need be subtracted first
        scores *= weight_sum
    for _ in range(NUM_LOWER):
        expert_statistics_ptr += stride_distribution
        amateur_statistics_ptr += stride_distribution
        _, lower_lse, entropy = row_statistics(expert_statistics_ptr, num_blocks, NUM_BLOCKS_PADDED)
        _, lower_amateur_lse, _ = row_statistics(amateur_statistics_ptr, num_blocks, NUM_BLOCKS_PADDED)
        lower = load_logits(lower_ptr + row * stride_lower_row, offs, mask)
        lower_amateur = load_logits(lower_amateur_ptr + row * stride_lower_amateur_row, offs, mask)
        lower_ptr += stride_lower_layer
        lower_amateur_ptr += stride_lower_amateur_layer
        contrast = lower - lower_lse - _weighted(lower_amateur_weight, lower_amateur - lower_amateur_lse)
        if BY_ENTROPY:
            weight = tl.exp(-entropy)
            weight_sum += weight
            scores += weight * contrast
        else:
            scores += lower_weight * contrast
        excluded = excluded | (lower == float("-inf"))
    if BY_ENTROPY:
        scores /= weight_sum
    scores = tl.where(excluded, float("-inf"), scores)
    if MASKED:
        masked = tl.where(expert < expert_max + log_alpha, float("-inf"), scores)
        if maxima_ptr is not None and not FALLBACK:
            tl.store(maxima_ptr + block, tl.max(masked, 0))
            remaining = tl.where(scores == float("-inf"), scores, expert)
            tl.store(maxima_ptr + num_score_blocks + block, tl.max(remaining, 0))
        scores = masked
    tl.store(scores_ptr + row * vocab_size + offs, scores, mask=mask)


@triton.jit
def _refocused_logits(expert_ptr, guided_ptr, row, stride_expert_row, stride_guided_row, offs, mask, refocus_weight):
    """Load the expert's logits, with guidance (1 + γ)·guided - γ·expert: -inf where either is.

    The multiply-add is spelled out so that both launches round alike, and the best token equals the maximum.
    """
    x = load_logits(expert_ptr + row * stride_expert_row, offs, mask)
    if guided_ptr is not None:
        guided = load_logits(guided_ptr + row * stride_guided_row, offs, mask)
        excluded = (guided == float("-inf")) | ((x == float("-inf")) & (refocus_weight != 0))
        refocused = tl.fma(refocus_weight + 1.0, guided, tl.where(excluded, 0.0, x) * -refocus_weight)
        x = tl.where(excluded, float("-inf"), refocused)
    return x


@triton.jit
def _weighted(weight, x):
    """Multiply by a weight; 0 where the weight is 0, for infinite x too."""
    return tl.where(weight == 0, 0.0, weight * x)


@triton.jit
def _maximum(block_maxima_ptr, num_blocks, NUM_BLOCKS_PADDED: tl.constexpr):
    """Return the largest of (blocks,) numbers."""
    offs = tl.arange(0, NUM_BLOCKS_PADDED)
    return tl.max(tl.load(block_maxima_ptr + offs, mask=offs < num_blocks, other=float("-inf")), 0)


def contrast_triton(
    expert: Tensor,
    amateur: Tensor,
    *,
    guided: Tensor | None = None,
    lower: Tensor | None = None,
    lower_amateur: Tensor | None = None,
    layer: Tensor | None = None,
    normalized: bool = True,
    expert_weight: float = 1.0,
    amateur_weight: float = 1.0,
    amateur_temperature: float = 1.0,
    lower_weight: float = 0.0,
    lower_amateur_weight: float = 1.0,
    by_entropy: bool = False,
    refocus_weight: float = 0.0,
    alpha: float | None = None,
) -> Tensor:
    """Compute the scores of any contrast of :mod:`decoding.kernels.contrast`, whose rules on infinities hold here.

    Args:
        expert: (..., vocab), any float dtype.
        amateur: (..., vocab), any float dtype; with ``layer`` (layers, ..., vocab).
        guided: (..., vocab); the expert is then (1 + γ)·guided - γ·expert.
        lower: (layers, ..., vocab), lower layers of the expert.
        lower_amateur: (layers, ..., vocab), lower layers of the amateur.
        layer: (...) int64, the amateur's layer that each row is contrasted with.
        normalized: contrast log-probabilities; False contrasts logits, without temperature or lower layers.
        expert_weight: weight of the expert's logits where ``normalized`` is False.
        amateur_weight: weight of the amateur.
        amateur_temperature: temperature of the amateur.
        lower_weight: weight of each lower contrast in static fusion.
        lower_amateur_weight: weight of the amateur in the lower contrasts.
        by_entropy: weigh all contrasts by the softmax of -entropy of the expert's distributions.
        refocus_weight: γ.
        alpha: plausibility threshold; None lets every token pass.

    Returns:
        (..., vocab) float32.
    """
    scores = torch.empty(expert.shape, dtype=torch.float32, device=expert.device)
    if scores.numel() == 0:
        return scores
    vocab_size, num_lower = expert.shape[-1], 0 if lower is None else len(lower)
    expert, amateur = flatten_rows(expert), flatten_rows(amateur, 1 if layer is None else 2)
    guided = None if guided is None else flatten_rows(guided)
    layer = None if layer is None else layer.flatten().contiguous()
    # Without lower layers these are never read, but compiled.
    lower = expert[None] if lower is None else flatten_rows(lower, 2)
    lower_amateur = expert[None] if lower_amateur is None else flatten_rows(lower_amateur, 2)
    inputs = (expert, amateur, guided, layer, lower, lower_amateur)
    row_strides = [0 if x is None else x.stride(-2) for x in (expert, amateur, guided, lower, lower_amateur)]
    layer_strides = [x.stride(0) for x in (amateur, lower, lower_amateur)]
    log_alpha = math.log(alpha) if alpha is not None and alpha > 0 else -math.inf
    masked = log_alpha > -math.inf  # α = 0 masks what the expert excludes, which is excluded without a mask too
    num_distributions = 2 * (1 + num_lower) if normalized else int(masked)
    num_rows = len(expert)
    block_size = choose_block_size(vocab_size, num_rows * num_distributions)
    score_block_size = choose_block_size(vocab_size, num_rows)
    num_blocks, num_score_blocks = triton.cdiv(vocab_size, block_size), triton.cdiv(vocab_size, score_block_size)
    statistics = torch.empty(num_distributions * num_rows * 3 * num_blocks, dtype=torch.float32, device=expert.device)
    fallback = masked and num_lower > 0
    maxima = (
        torch.empty(num_rows * 2 * num_score_blocks, dtype=torch.float32, device=expert.device) if fallback else None
    )
    sizes = (
        *row_strides, *layer_strides, float(refocus_weight), 1.0 / amateur_temperature,
        vocab_size, num_rows, num_blocks,
    )  # fmt: skip
    with torch.cuda.device_of(expert):  # Triton launches on the current device
        if num_distributions:
            _contrast_statistics_kernel[(num_rows * num_blocks, num_distributions)](
                *inputs, statistics, *sizes, NUM_LOWER=num_lower, BLOCK_SIZE=block_size,
                num_warps=choose_num_warps(block_size),
            )  # fmt: skip
        for is_fallback in (False, True) if fallback else (False,):
            _contrast_scores_kernel[(num_rows * num_score_blocks,)](
                *inputs, statistics, maxima, scores, *sizes, num_score_blocks,
                float(expert_weight), float(amateur_weight), float(lower_weight), float(lower_amateur_weight),
                log_alpha, NUM_LOWER=num_lower, NORMALIZED=normalized, MASKED=masked, BY_ENTROPY=by_entropy,
                FALLBACK=is_fallback, BLOCK_SIZE=score_block_size, NUM_BLOCKS_PADDED=triton.next_power_of_2(num_blocks),
                NUM_SCORE_BLOCKS_PADDED=triton.next_power_of_2(num_score_blocks),
                num_warps=choose_num_warps(score_block_size),
            )  # fmt: skip
    return scores
