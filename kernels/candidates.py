"""Candidates: the most probable tokens of a step."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["candidate_mask", "top_candidates", "within"]

BLOCK = 128  # tokens that share a maximum in the search for candidates


def top_candidates(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of (..., vocab) and their token ids, (..., k) each, as ``values.topk(k)``.

    A CPU finds them sooner in the k blocks with the largest maxima: nothing outside these is among them.
    """
    if values.dim() != 2:
        best, tokens = top_candidates(values.reshape(-1, values.shape[-1]), k)
        return best.view(*values.shape[:-1], k), tokens.view(*values.shape[:-1], k)
    blocks = values.shape[1] // BLOCK
    if values.device.type != "cpu" or blocks < 8 * k:
        best, tokens = values.topk(k)
        return best, tokens
    whole = blocks * BLOCK
    chosen = values[:, :whole].unflatten(1, (blocks, BLOCK)).amax(-1).topk(k).indices  # (batch, k)
    searched = (chosen[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)
    if whole < values.shape[1]:
        searched = torch.cat([searched, torch.arange(whole, values.shape[1]).expand(len(values), -1)], dim=1)
    best, indices = values.gather(1, searched).topk(k)
    return best, searched.gather(1, indices)


def candidate_mask(logits: Tensor, tokens: Tensor, is_candidate: Tensor | None = None) -> Tensor:
    """True for the candidates among the tokens of (..., vocab) logits: for the token ids (..., k), or where
    ``is_candidate`` is given, (..., k) bool, for those of them that it says.
    """
    is_candidate = torch.ones_like(tokens, dtype=torch.bool) if is_candidate is None else is_candidate
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, tokens, is_candidate)


def within(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores (..., vocab), -inf outside of a mask (..., vocab) bool; where that leaves a row nothing, the row's own."""
    kept = scores.masked_fill(~mask, -torch.inf)
    return torch.where(kept.amax(-1, keepdim=True) == -torch.inf, scores, kept)
