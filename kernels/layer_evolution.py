"""Evolution of logits through the layers: where it leads, and logits moved there (SLED, 2411.02433).

The formulas are those of :class:`decoding.SLED`. They are plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.kernels.exponentials import SMALLEST_LOG, log_sum_exp

__all__ = ["evolved", "latent_distribution"]


def latent_distribution(final: Tensor, exits: Tensor, tokens: Tensor) -> Tensor:
    """Compute what the evolution of the layers' logits implies for the candidates: P of SLED.

    The cosines need no vector for each candidate: softmax(l_n) - e_i enters by its norm and its product with the move.
    Where an exit is sure of one token these differences would cancel, so that token is left out of the softmax and
    added by its odds. Beside the logits it holds three tensors (..., vocab), whatever the number of layers.

    Args:
        final: (..., vocab) float32, logits of the final layer.
        exits: (layers, ..., vocab), those of the lower layers, any float dtype.
        tokens: (..., k) the candidates.

    Returns:
        (..., k) float32, of sum 1; all 0 where no layer points to any of them. A token at -inf in either layer takes no
        part in a move.
    """
    evidence = torch.zeros(tokens.shape, dtype=torch.float32, device=final.device)
    for layer in exits:
        lower = layer.to(final.device, torch.float32, copy=True)
        logit, surest = lower.max(-1, keepdim=True)  # (..., 1)
        others = lower.scatter(-1, surest, -torch.inf)
        rest = log_sum_exp(others)[..., None]
        others = others.sub_(rest).clamp_min_(SMALLEST_LOG).exp_()  # the distribution without the surest token
        p_surest, p_rest = (logit - rest).sigmoid(), (rest - logit).sigmoid()
        move = lower.sub_(final).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        length = torch.linalg.vector_norm(move, dim=-1, keepdim=True)
        among_others = torch.linalg.vecdot(others, move)[..., None]
        square = torch.linalg.vecdot(others, others)[..., None]
        of_surest = move.gather(-1, surest)
        # <p, move> and |p|², of the whole distribution p.
        product, norm = p_surest * of_surest + p_rest * among_others, p_surest**2 + p_rest**2 * square
        p = p_rest * others.gather(-1, tokens)  # at most a half, and 0 for the surest token
        cosines = (product - move.gather(-1, tokens)) / ((norm - 2 * p + 1).sqrt() * length)
        # p - e_surest is p_rest·(others - e_surest), whose direction does not depend on how sure the layer is.
        of_surest = (among_others - of_surest) / ((square + 1).sqrt() * length)
        cosines = torch.where(tokens == surest, of_surest, cosines)
        evidence += cosines.nan_to_num(nan=0.0).clamp_min(0.0).square()  # NaN where the logits did not move
    return evidence / evidence.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def evolved(final: Tensor, latent: Tensor, tokens: Tensor, rate: float, steps: int) -> Tensor:
    """Move logits towards a distribution over some tokens, by gradient descent on their divergence from it.

    Args:
        final: (..., vocab) float32.
        latent: (..., k) the distribution; a row of 0 leaves its logits as they are.
        tokens: (..., k) the tokens.
        rate: of the first step; those after it fall to 0 in a line.
        steps: how many.

    Returns:
        (..., vocab) float32.
    """
    logits = final.clone()
    known = latent.sum(-1, keepdim=True) > 0
    for step in range(steps):
        gradient = logits.softmax(-1).scatter_add_(-1, tokens, -latent)
        logits.sub_(gradient.mul_(known), alpha=rate * (1 - step / steps))
    return logits
