"""The choice of contrastive search in Triton: one launch, with the last reduction of the degeneration penalty in it."""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.degeneration_penalty.fused import tile_cosines, tile_maximum

__all__ = ["select_triton"]


@triton.jit(do_not_specialize=["confidence_weight", "penalty_weight", "num_tiles"])
def _select_kernel(
    tile_max_ptr,  # (batch, K, tiles) float32
    logits_ptr,  # (batch, vocab)
    probabilities_ptr,  # (batch, K) float32
    candidates_ptr,  # (batch, K) int64
    alpha_ptr,  # (batch,) float32, or None for one α, which the weights are of
    counts_ptr,  # (batch,) int64, or None
    token_ptr,  # (batch,) int64
    branch_ptr,  # (batch,) int64
    score_ptr,  # (batch,) float32
    confidence_weight,
    penalty_weight,
    num_tiles,
    stride_logits_row,
    stride_logits_token,
    stride_probabilities_row,
    stride_probabilities_k,
    stride_candidates_row,
    stride_candidates_k,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """Store token, branch and score of one row."""
    row = tl.program_id(0).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K)
    mask = offs_k < K
    penalty, _ = tile_maximum(tile_max_ptr, None, row, offs_k, num_tiles, K, BLOCK_K, BLOCK_TILES)
    candidate_ptrs = candidates_ptr + row * stride_candidates_row + offs_k * stride_candidates_k
    candidates = tl.load(candidate_ptrs, mask=mask, other=0)
    probability_ptrs = probabilities_ptr + row * stride_probabilities_row + offs_k * stride_probabilities_k
    probabilities = tl.load(probability_ptrs, mask=mask, other=0.0)
    logit_ptrs = logits_ptr + row * stride_logits_row + candidates * stride_logits_token
    logits = tl.load(logit_ptrs, mask=mask, other=float("-inf")).to(tl.float32)
    if alpha_ptr is not None:
        penalty_weight = tl.load(alpha_ptr + row)
        confidence_weight = 1 - penalty_weight
    scores = confidence_weight * probabilities - penalty_weight * penalty
    if counts_ptr is not None:
        scores = tl.where(offs_k < tl.load(counts_ptr + row), scores, float("-inf"))
    # A NaN equals nothing, not even the maximum: without this a row could be left without a token.
    scores = tl.where((logits > float("-inf")) & (scores == scores), scores, float("-inf"))
    best_score = tl.max(scores, axis=0)
    token = tl.min(tl.where(mask & (scores == best_score), candidates, 2**62), axis=0)  # lowest id of equal scores
    branch = tl.min(tl.where(mask & (candidates == token), offs_k, BLOCK_K), axis=0)
    tl.store(token_ptr + row, token)
    tl.store(branch_ptr + row, branch.to(tl.int64))
    tl.store(score_ptr + row, best_score)


def select_triton(
    logits: Tensor,
    probabilities: Tensor,
    candidates: Tensor,
    penalty_alpha: float | Tensor,
    hidden: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose token, branch and score, (batch,) each: :func:`decoding.kernels.selection.select`."""
    tile_max, _ = tile_cosines(hidden, history, history_inverse_norms, start, length)
    batch, k, num_tiles = tile_max.shape
    token, branch = torch.empty(2, batch, dtype=torch.int64, device=tile_max.device)
    score = torch.empty(batch, dtype=torch.float32, device=tile_max.device)
    block_k = triton.next_power_of_2(k)
    of_rows, alpha = (penalty_alpha.contiguous(), 0.0) if isinstance(penalty_alpha, Tensor) else (None, penalty_alpha)
    counts = None if counts is None else counts.contiguous()
    with torch.cuda.device_of(tile_max):  # Triton launches on the current device
        _select_kernel[(batch,)](
            tile_max, logits, probabilities, candidates, of_rows, counts, token, branch, score, 1 - alpha, alpha,
            num_tiles, *logits.stride(), *probabilities.stride(), *candidates.stride(),
            K=k, BLOCK_K=block_k, BLOCK_TILES=max(1, min(256, 2048 // block_k)),
        )  # fmt: skip
    return token, branch, score
