"""The choice of contrastive search in Triton: one launch with the last reduction of the degeneration penalty."""

# mypy: disable-error-code="no-untyped-def"
# (the parameters of a kernel have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.kernels.degeneration_penalty.triton import largest_cosines, tile_cosines

__all__ = ["select_triton"]


def select_triton(
    logits: Tensor,
    probabilities: Tensor,
    candidates: Tensor,
    penalty_alpha: float,
    hidden: Tensor,
    history: Tensor,
    history_inverse_norms: Tensor,
    start: Tensor | None = None,
    length: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token, branch and score; see :func:`decoding.kernels.selection.select`."""
    best, _ = tile_cosines(hidden, history, history_inverse_norms, start, length)
    batch, k, tiles = best.shape
    token, branch = torch.empty(2, batch, dtype=torch.int64, device=best.device)
    score = torch.empty(batch, dtype=torch.float32, device=best.device)
    block_k = triton.next_power_of_2(k)
    with torch.cuda.device_of(best):
        _select[(batch,)](
            best, logits, probabilities, candidates, token, branch, score, 1 - penalty_alpha, penalty_alpha, tiles,
            *logits.stride(), *probabilities.stride(), *candidates.stride(),
            K=k, BLOCK_K=block_k, BLOCK_TILES=max(1, min(256, 2048 // block_k)),
        )  # fmt: skip
    return token, branch, score


@triton.jit(do_not_specialize=["confidence_weight", "penalty_weight", "tiles"])
def _select(
    best,  # (batch, K, tiles) float32
    logits,  # (batch, vocab)
    probabilities,  # (batch, K) float32
    candidates,  # (batch, K) int64
    token,  # (batch,) int64
    branch,  # (batch,) int64
    score,  # (batch,) float32
    confidence_weight,
    penalty_weight,
    tiles,
    logits_row,
    logits_token,
    probabilities_row,
    probabilities_k,
    candidates_row,
    candidates_k,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    penalty, _ = largest_cosines(best, None, row, ks, tiles, K, BLOCK_K, BLOCK_TILES)
    ids = tl.load(candidates + row * candidates_row + ks * candidates_k, mask=ks < K, other=0)
    p = tl.load(probabilities + row * probabilities_row + ks * probabilities_k, mask=ks < K, other=0.0)
    own = tl.load(logits + row * logits_row + ids * logits_token, mask=ks < K, other=float("-inf")).to(tl.float32)
    scores = confidence_weight * p - penalty_weight * penalty
    # A NaN, which equals nothing, must not leave a row without a token.
    scores = tl.where((own > float("-inf")) & (scores == scores), scores, float("-inf"))
    largest = tl.max(scores, axis=0)
    first = tl.min(tl.where((ks < K) & (scores == largest), ids, 2**62), axis=0)  # of equals the lowest token id
    tl.store(token + row, first)
    tl.store(branch + row, tl.min(tl.where((ks < K) & (ids == first), ks, BLOCK_K), axis=0).to(tl.int64))
    tl.store(score + row, largest)
