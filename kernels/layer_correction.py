"""Logits corrected by the lower layer that is surest among the candidates (DeCo, 2410.11779).

The formulas are those of :class:`decoding.DeCo`. They are plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.kernels.candidates import top_candidates
from decoding.kernels.exponentials import log_sum_exp

__all__ = ["corrected", "probable_tokens", "sureness", "surest_exit"]


def probable_tokens(final: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Find the k most probable tokens, (..., k), and which of them are needed to reach a probability of p, (..., k).

    Args:
        final: (..., vocab) float32, logits.
        top_p: p; the token that reaches it is among them.
        top_k: k.
    """
    probabilities, tokens = top_candidates(final.softmax(-1), top_k)
    before = torch.nn.functional.pad(probabilities.cumsum(-1)[..., :-1], (1, 0))
    return tokens, before < top_p


def corrected(final: Tensor, exits: Tensor, tokens: Tensor, is_candidate: Tensor, alpha: float) -> Tensor:
    """Add the logits of the layer that is surest of a candidate, by how sure it is.

    Args:
        final: (..., vocab) float32, logits of the final layer.
        exits: (layers, ..., vocab), those of the lower layers, any float dtype.
        tokens: (..., k) token ids.
        is_candidate: (..., k) which of them are candidates, one at least.
        alpha: α >= 0.

    Returns:
        (..., vocab) float32: l_N + α·c·l_i, i the first of equally sure layers and c its largest probability of a
        candidate; -inf where either layer excludes a token.
    """
    if alpha == 0:
        return final
    log_c, chosen = surest_exit(exits, tokens, is_candidate)
    lower = torch.take_along_dim(exits, chosen.to(exits.device)[None, ..., None], dim=0)[0].to(final.device)
    scores = final + (alpha * log_c.exp())[..., None] * lower.float()
    return scores.masked_fill(lower == -torch.inf, -torch.inf)  # 0 · -inf is NaN


def surest_exit(exits: Tensor, tokens: Tensor, is_candidate: Tensor) -> tuple[Tensor, Tensor]:
    """The largest log-probability (...) that a lower layer gives a candidate, and the index (...) of the first such
    layer; arguments as in :func:`corrected`.
    """
    log_c, chosen = sureness(exits, tokens, is_candidate).max(0)
    return log_c, chosen


def sureness(exits: Tensor, tokens: Tensor, is_candidate: Tensor) -> Tensor:
    """The largest log-probability (layers, ...) that each lower layer gives a candidate; arguments as in
    :func:`corrected`.
    """
    log_probs = []
    for layer in exits:  # one after the other: logits of all layers in float32 would be as large again, or twice
        lower = layer.to(tokens.device, torch.float32)
        best = lower.gather(-1, tokens).masked_fill(~is_candidate, -torch.inf).amax(-1)
        log_probs.append(best - log_sum_exp(lower))
    return torch.stack(log_probs)
