"""What the scores of one step are made of, for explanations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from decoding.generation.roles import EXPERT

__all__ = ["ScoreParts", "candidate_parts", "model_parts", "processor_changes"]


@dataclass(frozen=True)
class ScoreParts:
    """The scores of the next token of every row, with what they are made of.

    Where there are weights, a token's score is the sum, over the names in ``weights``, of the weight times the reader's
    log-probability or the term of that name, up to a number that all tokens of the row share.

    Attributes:
        scores: (batch, vocab) float32, -inf for tokens that may not be chosen.
        readers: by name (batch, their vocabulary), logits of every reader of the text.
        terms: by name (batch, vocab) float32, what else enters the scores; NaN where a token has none.
        weights: by name (batch,) float32, of readers and terms; empty where the scores are no such sum.
        settings: by name (batch,), what the strategy has set for this step: a strength, a layer and what
            it was chosen by, a number of candidates.
        repeats: (batch, vocab) int64, the index of the token of the text that each token is most like, counted in the
            row as it was given; -1 where it has none. None for strategies without such a penalty.
    """

    scores: Tensor
    readers: Mapping[str, Tensor]
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Tensor] = field(default_factory=dict)
    repeats: Tensor | None = None


def candidate_parts(
    logits: Tensor,
    tokens: Tensor,
    probabilities: Tensor,
    penalty: Tensor,
    scores: Tensor,
    penalty_alpha: float | Tensor,
    model_logits: Tensor,
    repeats: Tensor | None = None,
) -> ScoreParts:
    """What scores (1 - α)·p - α·penalty of k candidates are made of.

    Args:
        logits: (batch, vocab) float32, processed.
        tokens: (batch, k) ids of the candidates.
        probabilities: (batch, k) theirs.
        penalty: likewise.
        scores: likewise.
        penalty_alpha: α, one number or (batch,).
        model_logits: (batch, vocab) of the model, unprocessed.
        repeats: (batch, k), see :class:`ScoreParts`.
    """

    def of_candidates(values: Tensor, others: float) -> Tensor:
        return torch.full_like(logits, others, dtype=values.dtype).scatter_(1, tokens, values)

    alpha = scores.new_ones(len(scores)) * penalty_alpha
    return ScoreParts(
        of_candidates(scores, -torch.inf),
        {EXPERT: model_logits},
        {"confidence": of_candidates(probabilities, torch.nan), "penalty": of_candidates(penalty, torch.nan)},
        {"confidence": 1 - alpha, "penalty": -alpha},
        {"penalty_alpha": alpha, "top_k": (scores > -torch.inf).sum(-1)},
        None if repeats is None else of_candidates(repeats, -1),
    )


def processor_changes(before: Tensor, scores: Tensor) -> Tensor | None:
    """(batch, vocab) what the call's processors and samplers have added to scores; NaN for tokens that they exclude.
    None where they have changed no score that is left.

    Args:
        before: (batch, vocab) float32.
        scores: likewise, after them.
    """
    changes = (scores - before).masked_fill(~scores.isfinite(), torch.nan)
    return changes if bool((changes.nan_to_num() != 0).any()) else None


def model_parts(logits: Tensor, scores: Tensor, temperature: float = 1.0) -> ScoreParts:
    """What scores are made of that processors and a temperature have made of the model's logits.

    Args:
        logits: (batch, vocab) of the model.
        scores: (batch, vocab) float32.
        temperature: above 0.
    """
    logits = logits.to(scores.device, torch.float32)
    one = scores.new_ones(len(scores))
    changes = processor_changes(logits / temperature, scores)
    terms, weights = {}, {EXPERT: one / temperature}
    if changes is not None:
        terms, weights = {"processors": changes}, {**weights, "processors": one}
    return ScoreParts(scores, {EXPERT: logits}, terms, weights)
