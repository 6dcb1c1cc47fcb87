"""The choice between a draft and the strategy's own token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["verified"]


def verified(
    scores: Tensor, drafts: Tensor, probabilities: Tensor, generators: Sequence[torch.Generator] | None
) -> Tensor:
    """Draw a token of each row from the softmax π of its scores, which is the draft as often as that can be.

    A draft d that was drawn from a distribution q is taken with probability min(1, π(d) / q(d)); where it is not, the
    token is drawn from the positive part of π - q. Source: Leviathan et al., "Fast Inference from Transformers via
    Speculative Decoding", 2211.17192.

    Args:
        scores: (rows, vocab) float32; not all -inf in a row, and no NaN.
        drafts: (rows,) token ids.
        probabilities: (rows, vocab) q.
        generators: one for each row; None draws all rows from torch's global generator.

    Returns:
        (rows,) token ids.
    """
    own = scores.softmax(-1)
    drafted = drafts[:, None]
    share = (own / probabilities).gather(1, drafted)[:, 0]
    if generators is None:
        uniform = torch.rand(len(scores), device=scores.device)
    else:
        uniform = torch.cat([torch.rand(1, device=scores.device, generator=generator) for generator in generators])
    rest = (own - probabilities).clamp(min=0)
    # Where π is q but for rounding every draft is taken; a row of zeros could not be drawn from.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, own)
    if generators is None:
        others = torch.multinomial(rest, num_samples=1)[:, 0]
    else:
        others = torch.cat(
            [
                torch.multinomial(row, num_samples=1, generator=generator)
                for row, generator in zip(rest, generators, strict=True)
            ]
        )
    return torch.where(uniform < share, drafts, others)
