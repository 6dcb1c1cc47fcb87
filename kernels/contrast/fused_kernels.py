"""The kernels of all contrasts: the softmax statistics of each input, and the scores.

Both kernels take the same inputs in the same order, spelled out in each: Triton could take them as one tuple, in which
pointers, shapes and strides would have numbers and no names.
"""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import triton
import triton.language as tl

from decoding.kernels.softmax_statistics import block_of_program, load_logits, row_statistics, store_block_statistics

__all__ = ["contrast_scores_kernel", "contrast_statistics_kernel"]

NUM_SETTINGS = tl.constexpr(7)


@triton.jit(do_not_specialize=["num_rows", "num_blocks"])
def contrast_statistics_kernel(
    expert_ptr,  # (rows, vocab)
    amateur_ptr,  # (rows, vocab), with layer_ptr (layers, rows, vocab)
    guided_ptr,  # (rows, vocab), or None
    layer_ptr,  # (rows,) int64, or None
    lower_ptr,  # (NUM_LOWER, rows, vocab)
    lower_amateur_ptr,  # (NUM_LOWER, rows, vocab)
    layers_ptr,  # (NUM_LOWER, rows) uint8, 0 where a lower layer does not count; or None
    settings_ptr,  # (rows, NUM_SETTINGS) float32, in place of the numbers below; or None
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
    if layers_ptr is not None:
        lower_layer = distribution % (NUM_LOWER + 1) - 1  # -1 for the final layers
        if tl.load(layers_ptr + lower_layer * num_rows + row, mask=lower_layer >= 0, other=1) == 0:
            return
    if settings_ptr is not None:
        settings_ptr += row * NUM_SETTINGS
        refocus_weight, amateur_scale = tl.load(settings_ptr), tl.load(settings_ptr + 1)
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
def contrast_scores_kernel(
    expert_ptr,
    amateur_ptr,
    guided_ptr,
    layer_ptr,
    lower_ptr,
    lower_amateur_ptr,
    layers_ptr,
    settings_ptr,
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
    if settings_ptr is not None:
        settings_ptr += row * NUM_SETTINGS
        refocus_weight, amateur_scale = tl.load(settings_ptr), tl.load(settings_ptr + 1)
        expert_weight, amateur_weight = tl.load(settings_ptr + 2), tl.load(settings_ptr + 3)
        lower_weight, lower_amateur_weight = tl.load(settings_ptr + 4), tl.load(settings_ptr + 5)
        log_alpha = tl.load(settings_ptr + 6)
    if layers_ptr is not None:
        layers_ptr += row

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
    for _layer in range(NUM_LOWER):  # not `_`, whose type the branch below would change
        expert_statistics_ptr += stride_distribution
        amateur_statistics_ptr += stride_distribution
        counts = True
        if layers_ptr is not None:
            counts = tl.load(layers_ptr) != 0
            layers_ptr += num_rows
        if counts:
            _, lower_lse, entropy = row_statistics(expert_statistics_ptr, num_blocks, NUM_BLOCKS_PADDED)
            _, lower_amateur_lse, _ = row_statistics(amateur_statistics_ptr, num_blocks, NUM_BLOCKS_PADDED)
            lower = load_logits(lower_ptr + row * stride_lower_row, offs, mask)
            lower_amateur = load_logits(lower_amateur_ptr + row * stride_lower_amateur_row, offs, mask)
            contrast = lower - lower_lse - _weighted(lower_amateur_weight, lower_amateur - lower_amateur_lse)
            if BY_ENTROPY:
                weight = tl.exp(-entropy)
                weight_sum += weight
                scores += weight * contrast
            else:
                scores += lower_weight * contrast
            excluded = excluded | (lower == float("-inf"))
        lower_ptr += stride_lower_layer
        lower_amateur_ptr += stride_lower_amateur_layer
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
    """Load the expert's logits, with guidance (1 + γ)·guided - γ·expert: -inf where either is, and guided with γ = 0.

    The multiply-add is spelled out so that both launches round alike, and the best token equals the maximum.
    """
    x = load_logits(expert_ptr + row * stride_expert_row, offs, mask)
    if guided_ptr is not None:
        guided = load_logits(guided_ptr + row * stride_guided_row, offs, mask)
        weighted = _weighted(refocus_weight, x)
        excluded = (guided == float("-inf")) | (weighted == float("-inf"))
        x = tl.where(excluded, float("-inf"), tl.fma(refocus_weight + 1.0, guided, -weighted))
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
