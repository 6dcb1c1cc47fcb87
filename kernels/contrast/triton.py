"""Every contrast of the family as two launches: softmax statistics of each input, then the scores.

The first reads each input once, a block of the vocabulary a program, so that one row fills a GPU too. The second reads
each a second time and writes the scores. The log-softmax of guided and plain expert need not be known before they are
put together: their shifts cancel, so the refocused expert's plausibility, log-sum-exp and entropy are those of
(1 + γ)·guided - γ·expert, which both launches form as they read.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.softmax_statistics import block_size, block_statistics, row_statistics, rows_of

__all__ = ["contrast_triton"]


@triton.jit
def _row(logits, row, stride, at, inside):
    """A block of a row in float32 (bf16 arithmetic is wrong in the interpreter), -inf outside."""
    return tl.load(logits + row * stride + at, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def _refocused(expert, guided, row, expert_stride, guided_stride, at, inside, weight, GUIDED: tl.constexpr):
    """The expert's logits, or (1 + γ)·guided - γ·expert: -inf where either is.

    The multiply-add is spelled out so that both launches round alike, and the best token equals the maximum.
    """
    x = _row(expert, row, expert_stride, at, inside)
    if GUIDED:
        g = _row(guided, row, guided_stride, at, inside)
        excluded = (g == float("-inf")) | ((x == float("-inf")) & (weight != 0))
        x = tl.where(excluded, float("-inf"), tl.fma(weight + 1.0, g, tl.where(excluded, 0.0, x) * -weight))
    return x


@triton.jit
def _statistics_kernel(
    expert, guided, amateur, lower, lower_amateur, layer, partials,
    expert_stride, guided_stride, amateur_stride, lower_stride, lower_amateur_stride,
    amateur_layer_stride, lower_layer_stride, lower_amateur_layer_stride,
    refocus_weight, amateur_scale, vocab, rows, blocks,
    GUIDED: tl.constexpr, CHOSEN: tl.constexpr, LOWER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Statistics of one block of one distribution: the expert's, those of its lower layers, the amateur's, its."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    distribution = tl.program_id(1).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab
    if distribution == 0:
        x = _refocused(expert, guided, row, expert_stride, guided_stride, at, inside, refocus_weight, GUIDED)
    elif distribution <= LOWER:
        x = _row(lower + (distribution - 1) * lower_layer_stride, row, lower_stride, at, inside)
    elif distribution == LOWER + 1:
        if CHOSEN:
            amateur += tl.load(layer + row) * amateur_layer_stride
        x = _row(amateur, row, amateur_stride, at, inside) * amateur_scale
    else:
        x = _row(
            lower_amateur + (distribution - LOWER - 2) * lower_amateur_layer_stride,
            row, lower_amateur_stride, at, inside,
        )  # fmt: skip
    top, total, moment = block_statistics(x)
    to = partials + (distribution * rows + row) * 3 * blocks + block
    tl.store(to, top)
    tl.store(to + blocks, total)
    tl.store(to + 2 * blocks, moment)


@triton.jit
def _weighted(weight, x):
    """weight·x; 0 without weight, whatever x is."""
    return tl.where(weight == 0, 0.0, weight * x)


@triton.jit
def _scores_kernel(
    expert, guided, amateur, lower, lower_amateur, layer, partials, scores,
    expert_stride, guided_stride, amateur_stride, lower_stride, lower_amateur_stride,
    amateur_layer_stride, lower_layer_stride, lower_amateur_layer_stride,
    refocus_weight, amateur_scale, vocab, rows, blocks,
    expert_weight, amateur_weight, lower_weight, lower_amateur_weight, log_alpha, score_blocks,
    GUIDED: tl.constexpr, CHOSEN: tl.constexpr, LOWER: tl.constexpr, BLOCK: tl.constexpr,
    NORMALIZED: tl.constexpr, MASKED: tl.constexpr, BY_ENTROPY: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One block of the scores of one row."""
    row = (tl.program_id(0) // score_blocks).to(tl.int64)
    at = (tl.program_id(0) % score_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab
    own = partials + row * 3 * blocks  # the row's statistics of the expert, those of the amateur and of the layers
    step = tl.cast(rows, tl.int64) * 3 * blocks  # from one distribution to the next
    amateur_own = own + (LOWER + 1) * step

    evidence = _refocused(expert, guided, row, expert_stride, guided_stride, at, inside, refocus_weight, GUIDED)
    if CHOSEN:
        amateur += tl.load(layer + row) * amateur_layer_stride
    a = _row(amateur, row, amateur_stride, at, inside)
    excluded = evidence == float("-inf")
    if NORMALIZED or MASKED:
        top, log_sum, entropy = row_statistics(own, blocks, BLOCKS)
    if MASKED:
        excluded = excluded | (evidence < top + log_alpha)
    if NORMALIZED:
        _, amateur_log_sum, _ = row_statistics(amateur_own, blocks, BLOCKS)
        fused = evidence - log_sum - _weighted(amateur_weight, a * amateur_scale - amateur_log_sum)
    else:
        fused = expert_weight * evidence - _weighted(amateur_weight, a)

    if BY_ENTROPY:
        weights = tl.exp(-entropy)  # >= 1 / vocab: no maximum need be taken out
        fused *= weights
    for _ in range(LOWER):
        own += step
        amateur_own += step
        _, log_sum, entropy = row_statistics(own, blocks, BLOCKS)
        _, amateur_log_sum, _ = row_statistics(amateur_own, blocks, BLOCKS)
        x = _row(lower, row, lower_stride, at, inside)
        a = _row(lower_amateur, row, lower_amateur_stride, at, inside)
        lower += lower_layer_stride
        lower_amateur += lower_amateur_layer_stride
        pair = x - log_sum - _weighted(lower_amateur_weight, a - amateur_log_sum)
        if BY_ENTROPY:
            weight = tl.exp(-entropy)
            fused += weight * pair
            weights += weight
        else:
            fused += lower_weight * pair
        excluded = excluded | (x == float("-inf"))
    if BY_ENTROPY:
        fused /= weights
    tl.store(scores + row * vocab + at, tl.where(excluded, float("-inf"), fused), mask=inside)


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
    """Scores of any form of the family; see :mod:`decoding.kernels.contrast` for shapes and rules.

    Args:
        expert: (..., vocab).
        amateur: (..., vocab); with ``layer`` (layers, ..., vocab).
        guided: (..., vocab); the expert is then (1 + γ)·guided - γ·expert.
        lower: (layers, ..., vocab) of the expert.
        lower_amateur: (layers, ..., vocab).
        layer: (...) which of the amateur's layers a row is contrasted with.
        normalized: whether logits become log-probabilities first; without, no temperature and no lower layers.
        expert_weight: of logits that are not normalized.
        amateur_weight: what the amateur's are weighed by.
        amateur_temperature: what the amateur's logits are divided by.
        lower_weight: of each lower contrast, in static fusion.
        lower_amateur_weight: of the amateur in these.
        by_entropy: the weights of all contrasts are the softmax of -entropy of the expert's distributions.
        refocus_weight: γ.
        alpha: of plausibility; None lets every token pass.
    """
    shape, vocab = expert.shape, expert.shape[-1]
    expert, amateur = rows_of(expert), rows_of(amateur, 1 if layer is None else 2)
    rows, count = expert.shape[0], 0 if lower is None else len(lower)
    scores = torch.empty(shape, dtype=torch.float32, device=expert.device)
    if scores.numel() == 0:
        return scores
    # A tensor that is not there is never read; the expert stands for it.
    guided_rows = expert if guided is None else rows_of(guided)
    lower_rows = expert[None] if lower is None else rows_of(lower, 2)
    lower_amateur_rows = expert[None] if lower_amateur is None else rows_of(lower_amateur, 2)
    log_alpha = math.log(alpha) if alpha is not None and alpha > 0 else -math.inf
    masked = log_alpha > -math.inf  # at α = 0 only what the expert excludes goes, as it does without a mask
    distributions = 2 * (1 + count) if normalized else int(masked)
    block = block_size(vocab, rows * distributions)
    blocks = triton.cdiv(vocab, block)
    partials = torch.empty(distributions * rows * 3 * blocks, dtype=torch.float32, device=expert.device)
    inputs = (
        expert,
        guided_rows,
        amateur,
        lower_rows,
        lower_amateur_rows,
        expert if layer is None else layer.flatten().contiguous(),
    )
    sizes = (
        *(each.stride(-2) for each in inputs[:5]),
        *(each.stride(0) for each in (amateur, lower_rows, lower_amateur_rows)),
        float(refocus_weight), 1.0 / amateur_temperature, vocab, rows, blocks,
    )  # fmt: skip
    forms = {"GUIDED": guided is not None, "CHOSEN": layer is not None, "LOWER": count}
    with torch.cuda.device_of(expert):
        if distributions:
            _statistics_kernel[(rows * blocks, distributions)](
                *inputs, partials, *sizes, **forms, BLOCK=block, num_warps=8 if block > 2048 else 4
            )
        score_block = block_size(vocab, rows)
        score_blocks = triton.cdiv(vocab, score_block)
        _scores_kernel[(rows * score_blocks,)](
            *inputs, partials, scores, *sizes,
            float(expert_weight), float(amateur_weight), float(lower_weight), float(lower_amateur_weight),
            log_alpha, score_blocks,
            **forms, BLOCK=score_block, NORMALIZED=normalized, MASKED=masked, BY_ENTROPY=by_entropy,
            BLOCKS=triton.next_power_of_2(blocks), num_warps=8 if score_block > 2048 else 4,
        )  # fmt: skip
    return scores
