"""Every contrast of the family in Triton: one launch for the softmax statistics of each input, one for the scores.

The first reads each input once, a block of the vocabulary a program, so that one row fills a GPU too. The second reads
each a second time and writes the scores. The log-softmax of guided and plain expert need not be known before they are
put together: their shifts cancel, so the refocused expert's plausibility, log-sum-exp and entropy are those of
(1 + γ)·guided - γ·expert, which both launches form as they read.

Where lower layers may exclude every plausible token of a row, the scores' launch is made twice: the first leaves what
is best in each block, and the second ends at once for every row that has a token left.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.softmax_statistics import block_size, block_statistics, row_statistics, rows_of, warps

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
    scores = torch.empty(expert.shape, dtype=torch.float32, device=expert.device)
    if scores.numel() == 0:
        return scores
    vocab, count = expert.shape[-1], 0 if lower is None else len(lower)
    expert, amateur = rows_of(expert), rows_of(amateur, 1 if layer is None else 2)
    inputs = (
        expert, amateur,
        None if guided is None else rows_of(guided),
        None if layer is None else layer.flatten().contiguous(),
        expert[None] if lower is None else rows_of(lower, 2),  # never read without layers, but compiled
        expert[None] if lower_amateur is None else rows_of(lower_amateur, 2),
    )  # fmt: skip
    row_strides = [0 if each is None else each.stride(-2) for each in (*inputs[:3], *inputs[4:])]
    layer_strides = [each.stride(0) for each in (amateur, *inputs[4:])]
    log_alpha = math.log(alpha) if alpha is not None and alpha > 0 else -math.inf
    masked = log_alpha > -math.inf  # at α = 0 only what the expert excludes goes, as it does without a mask
    distributions = 2 * (1 + count) if normalized else int(masked)
    rows = len(expert)
    block, score_block = block_size(vocab, rows * distributions), block_size(vocab, rows)
    blocks, score_blocks = triton.cdiv(vocab, block), triton.cdiv(vocab, score_block)
    partials = torch.empty(distributions * rows * 3 * blocks, dtype=torch.float32, device=expert.device)
    anew = masked and count > 0
    tops = torch.empty(rows * 2 * score_blocks, dtype=torch.float32, device=expert.device) if anew else None
    sizes = (*row_strides, *layer_strides, float(refocus_weight), 1.0 / amateur_temperature, vocab, rows, blocks)
    with torch.cuda.device_of(expert):
        if distributions:
            _statistics[(rows * blocks, distributions)](
                *inputs, partials, *sizes, LOWER=count, BLOCK=block, num_warps=warps(block)
            )
        for again in (False, True) if anew else (False,):
            _scores[(rows * score_blocks,)](
                *inputs, partials, tops, scores, *sizes, score_blocks,
                float(expert_weight), float(amateur_weight), float(lower_weight), float(lower_amateur_weight),
                log_alpha, LOWER=count, NORMALIZED=normalized, MASKED=masked, BY_ENTROPY=by_entropy, AGAIN=again,
                BLOCK=score_block, BLOCKS=triton.next_power_of_2(blocks),
                SCORE_BLOCKS=triton.next_power_of_2(score_blocks), num_warps=warps(score_block),
            )  # fmt: skip
    return scores


@triton.jit(do_not_specialize=["rows", "blocks"])
def _statistics(
    expert,  # (rows, vocab)
    amateur,  # (rows, vocab), with layer (layers, rows, vocab)
    guided,  # (rows, vocab), or None
    layer,  # (rows,) int64, or None
    lower,  # (LOWER, rows, vocab)
    lower_amateur,  # (LOWER, rows, vocab)
    partials,  # (distributions, rows, 3, blocks) float32
    expert_row,
    amateur_row,
    guided_row,
    lower_row,
    lower_amateur_row,
    amateur_layer,
    lower_layer,
    lower_amateur_layer,
    refocus_weight,
    amateur_scale,
    vocab,
    rows,
    blocks,
    LOWER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of one block of one distribution: the expert's, those of its lower layers, the amateur's, those of its own."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    distribution = tl.program_id(1).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab
    if distribution == 0:
        x = _refocused(expert, guided, row, expert_row, guided_row, at, inside, refocus_weight)
    elif distribution == LOWER + 1:
        if layer is not None:
            amateur += tl.load(layer + row) * amateur_layer
        x = _read(amateur + row * amateur_row, at, inside) * amateur_scale
    elif distribution <= LOWER:
        x = _read(lower + (distribution - 1) * lower_layer + row * lower_row, at, inside)
    else:
        below = distribution - LOWER - 2
        x = _read(lower_amateur + below * lower_amateur_layer + row * lower_amateur_row, at, inside)
    top, total, moment = block_statistics(x)
    own = partials + (distribution * rows + row) * 3 * blocks + block
    tl.store(own, top)
    tl.store(own + blocks, total)
    tl.store(own + 2 * blocks, moment)


@triton.jit(do_not_specialize=["rows", "blocks", "score_blocks"])
def _scores(
    expert,
    amateur,
    guided,
    layer,
    lower,
    lower_amateur,
    partials,
    tops,  # (rows, 2, score_blocks) float32 best score and, of what no layer excludes, best evidence; or None
    scores,  # (rows, vocab) float32
    expert_row,
    amateur_row,
    guided_row,
    lower_row,
    lower_amateur_row,
    amateur_layer,
    lower_layer,
    lower_amateur_layer,
    refocus_weight,
    amateur_scale,
    vocab,
    rows,
    blocks,
    score_blocks,
    expert_weight,
    amateur_weight,
    lower_weight,
    lower_amateur_weight,
    log_alpha,
    LOWER: tl.constexpr,
    NORMALIZED: tl.constexpr,
    MASKED: tl.constexpr,
    BY_ENTROPY: tl.constexpr,
    AGAIN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    SCORE_BLOCKS: tl.constexpr,
):
    """Of one block of one row; ``AGAIN`` where no token of the row was left, with plausibility among the others."""
    row = (tl.program_id(0) // score_blocks).to(tl.int64)
    block = tl.program_id(0) % score_blocks
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab
    if tops is not None:
        tops += row * 2 * score_blocks
    if AGAIN:  # noqa: SIM102 - the compiler would read what is not there
        if _largest(tops, score_blocks, SCORE_BLOCKS) != float("-inf"):
            return
    own = partials + row * 3 * blocks  # the row's statistics of the expert and its layers, those of the amateur
    step = tl.cast(rows, tl.int64) * 3 * blocks
    amateur_own = own + (LOWER + 1) * step

    evidence = _refocused(expert, guided, row, expert_row, guided_row, at, inside, refocus_weight)
    if layer is not None:
        amateur += tl.load(layer + row) * amateur_layer
    a = _read(amateur + row * amateur_row, at, inside)
    excluded = evidence == float("-inf")
    if NORMALIZED or MASKED:
        top, log_sum, entropy = row_statistics(own, blocks, BLOCKS)
    if AGAIN:
        top = _largest(tops + score_blocks, score_blocks, SCORE_BLOCKS)
    if NORMALIZED:
        _, amateur_log_sum, _ = row_statistics(amateur_own, blocks, BLOCKS)
        fused = evidence - log_sum - _times(amateur_weight, a * amateur_scale - amateur_log_sum)
    else:
        fused = expert_weight * evidence - _times(amateur_weight, a)

    if BY_ENTROPY:
        weights = tl.exp(-entropy)  # >= 1 / vocab: no maximum need be taken out
        fused *= weights
    for _ in range(LOWER):
        own += step
        amateur_own += step
        _, log_sum, entropy = row_statistics(own, blocks, BLOCKS)
        _, amateur_log_sum, _ = row_statistics(amateur_own, blocks, BLOCKS)
        x = _read(lower + row * lower_row, at, inside)
        a = _read(lower_amateur + row * lower_amateur_row, at, inside)
        lower += lower_layer
        lower_amateur += lower_amateur_layer
        pair = x - log_sum - _times(lower_amateur_weight, a - amateur_log_sum)
        if BY_ENTROPY:
            weight = tl.exp(-entropy)
            weights += weight
            fused += weight * pair
        else:
            fused += lower_weight * pair
        excluded = excluded | (x == float("-inf"))
    if BY_ENTROPY:
        fused /= weights
    fused = tl.where(excluded, float("-inf"), fused)
    if MASKED:
        plausible = tl.where(evidence < top + log_alpha, float("-inf"), fused)
        if tops is not None and not AGAIN:
            tl.store(tops + block, tl.max(plausible, 0))
            tl.store(tops + score_blocks + block, tl.max(tl.where(fused == float("-inf"), fused, evidence), 0))
        fused = plausible
    tl.store(scores + row * vocab + at, fused, mask=inside)


@triton.jit
def _largest(tops, blocks, BLOCKS: tl.constexpr):
    """Of (blocks,) numbers."""
    block = tl.arange(0, BLOCKS)
    return tl.max(tl.load(tops + block, mask=block < blocks, other=float("-inf")), 0)


@triton.jit
def _refocused(expert, guided, row, expert_row, guided_row, at, inside, weight):
    """The expert's logits, or (1 + γ)·guided - γ·expert: -inf where either is.

    The multiply-add is spelled out so that both launches round alike, and the best token equals the maximum.
    """
    x = _read(expert + row * expert_row, at, inside)
    if guided is not None:
        g = _read(guided + row * guided_row, at, inside)
        excluded = (g == float("-inf")) | ((x == float("-inf")) & (weight != 0))
        x = tl.where(excluded, float("-inf"), tl.fma(weight + 1.0, g, tl.where(excluded, 0.0, x) * -weight))
    return x


@triton.jit
def _read(logits, at, inside):
    """Elements of a row in float32 (the interpreter's bfloat16 arithmetic is wrong), -inf outside."""
    return tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def _times(weight, x):
    """weight·x; 0 without weight, whatever x is."""
    return tl.where(weight == 0, 0.0, weight * x)
