"""All contrasts of the family in Triton: one launch for the softmax statistics of each input, one for the scores.

The first launch reads each input once, one block of the vocabulary a program, so that a single row fills a GPU too. The
second reads each input again and writes the scores. With guidance the log-softmax of neither reading is needed first:
their shifts cancel, so maximum, log-sum-exp and entropy of the refocused expert are those of (1 + γ)·guided - γ·expert,
which both launches compute as they read.

Weights, temperature and α are arguments of a launch where all of them are numbers. Where any has one for each row, a
program reads its row's, which lie side by side. A lower layer that does not count in a row is not read for it.

Lower layers may exclude every plausible token of a row. Then the scores are launched twice: the first launch also
stores each block's maxima, and the second returns early for every row that still has a token.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from decoding.kernels.contrast.fused_kernels import contrast_scores_kernel, contrast_statistics_kernel
from decoding.kernels.contrast.settings import Setting, log_of, packed
from decoding.kernels.softmax_statistics import choose_block_size, choose_num_warps, flatten_rows

__all__ = ["contrast_triton"]


def contrast_triton(
    expert: Tensor,
    amateur: Tensor,
    *,
    guided: Tensor | None = None,
    lower: Tensor | None = None,
    lower_amateur: Tensor | None = None,
    layer: Tensor | None = None,
    normalized: bool = True,
    expert_weight: Setting = 1.0,
    amateur_weight: Setting = 1.0,
    amateur_temperature: Setting = 1.0,
    lower_weight: Setting = 0.0,
    lower_amateur_weight: Setting = 1.0,
    by_entropy: bool = False,
    refocus_weight: Setting = 0.0,
    alpha: Setting | None = None,
    layers: Tensor | None = None,
) -> Tensor:
    """Compute the scores of any contrast of :mod:`decoding.kernels.contrast`, whose rules on infinities hold here.

    Weights, temperature and ``alpha`` are numbers, or (...) one a row.

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
        layers: (layers, ...) bool, the lower layers that count in each row; None for all.

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
    layers = None if layers is None else layers.reshape(num_lower, -1).contiguous().view(torch.uint8)
    log_alpha = -math.inf if alpha is None else log_of(alpha)
    # α = 0 masks what the expert excludes, which is excluded without a mask too.
    masked = isinstance(log_alpha, Tensor) or log_alpha > -math.inf
    settings = [  # in the order in which the kernels load them
        refocus_weight, 1.0 / amateur_temperature, expert_weight, amateur_weight, lower_weight, lower_amateur_weight,
        log_alpha,
    ]  # fmt: skip
    of_rows = packed(settings)
    numbers = [0.0 if isinstance(setting, Tensor) else float(setting) for setting in settings]
    inputs = (expert, amateur, guided, layer, lower, lower_amateur, layers, of_rows)
    row_strides = [0 if x is None else x.stride(-2) for x in (expert, amateur, guided, lower, lower_amateur)]
    layer_strides = [x.stride(0) for x in (amateur, lower, lower_amateur)]
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
    sizes = (*row_strides, *layer_strides, *numbers[:2], vocab_size, num_rows, num_blocks)
    with torch.cuda.device_of(expert):  # Triton launches on the current device
        if num_distributions:
            contrast_statistics_kernel[(num_rows * num_blocks, num_distributions)](
                *inputs, statistics, *sizes, NUM_LOWER=num_lower, BLOCK_SIZE=block_size,
                num_warps=choose_num_warps(block_size),
            )  # fmt: skip
        for is_fallback in (False, True) if fallback else (False,):
            contrast_scores_kernel[(num_rows * num_score_blocks,)](
                *inputs, statistics, maxima, scores, *sizes, num_score_blocks, *numbers[2:],
                NUM_LOWER=num_lower, NORMALIZED=normalized, MASKED=masked, BY_ENTROPY=by_entropy,
                FALLBACK=is_fallback, BLOCK_SIZE=score_block_size, NUM_BLOCKS_PADDED=triton.next_power_of_2(num_blocks),
                NUM_SCORE_BLOCKS_PADDED=triton.next_power_of_2(num_score_blocks),
                num_warps=choose_num_warps(score_block_size),
            )  # fmt: skip
    return scores
