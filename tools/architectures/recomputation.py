"""Contrastive search by full recomputation: every candidate's text is read from its first token, without a cache.

What a text gives is what the model by itself says of it (:mod:`decoding.tools.architectures.readings`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from decoding.tools.architectures.readings import Prompt, said

__all__ = ["Step", "recomputed"]


@dataclass(frozen=True)
class Step:
    """One step of one row.

    Attributes:
        token: the one chosen.
        scores: of the candidates, by token.
        margin: how far the choice is from another one: the gap between the two best scores, or between the
            probabilities of the last candidate and the first token that is none, whichever is smaller.
    """

    token: int
    scores: dict[int, float]
    margin: float


def recomputed(model: Any, prompt: Prompt, padding: int, penalty_alpha: float, top_k: int, steps: int) -> list[Step]:
    """Contrastive search after ``prompt``, by itself or after ``padding`` masked tokens.

    Source: Su et al., "A Contrastive Framework for Neural Text Generation", eq. 2; h is the last of the hidden states
    that the model returns.
    """
    text, made = list(prompt.text), []
    for _ in range(steps):
        read = said(model, replace(prompt, text=text), padding)[-1]
        probabilities = read.logits.softmax(-1)
        best, candidates = probabilities.topk(top_k + 1)
        scores: dict[int, float] = {}
        for probability, token in zip(best[:-1].tolist(), candidates[:-1].tolist(), strict=True):
            own = said(model, replace(prompt, text=[*text, token]), padding)[-1].hidden[-1]
            penalty = float(torch.nn.functional.cosine_similarity(own[None], read.hidden, dim=1).max())
            scores[token] = (1 - penalty_alpha) * probability - penalty_alpha * penalty
        first, second, *_ = sorted(scores.values(), reverse=True)
        token = max(scores, key=lambda each: scores[each])
        made.append(Step(token, scores, min(first - second, float(best[-2] - best[-1]))))
        text.append(token)
    return made
