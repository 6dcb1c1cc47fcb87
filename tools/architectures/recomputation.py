"""Contrastive search by full recomputation: every candidate's text is read from its first token, without a cache.

Logits and states of a text are the model's own (:mod:`decoding.tools.architectures.reference`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from decoding.tools.architectures.reference import Prompt, reference_steps

__all__ = ["Step", "recomputed"]


@dataclass(frozen=True)
class Step:
    """One step of one row.

    Attributes:
        token: the chosen one.
        scores: of the candidates, by token.
        margin: distance of the choice from another one: the gap between the two best scores, or between the
            probabilities of the last candidate and of the next token, whichever is smaller.
    """

    token: int
    scores: dict[int, float]
    margin: float


def recomputed(model: Any, prompt: Prompt, padding: int, penalty_alpha: float, top_k: int, steps: int) -> list[Step]:
    """Contrastive search after ``prompt``, alone or after ``padding`` masked tokens.

    Source: Su et al., "A Contrastive Framework for Neural Text Generation", eq. 2; h is the last of the hidden states
    that the model returns.
    """
    text, chosen = list(prompt.text), []
    step = reference_steps(model, prompt, padding)[-1]
    for _ in range(steps):
        probabilities = step.logits.softmax(-1)
        best, candidates = probabilities.topk(top_k + 1)
        read = {
            token: reference_steps(model, replace(prompt, text=[*text, token]), padding)[-1]
            for token in candidates[:-1].tolist()
        }
        scores: dict[int, float] = {}
        for probability, (token, own) in zip(best[:-1].tolist(), read.items(), strict=True):
            penalty = float(torch.nn.functional.cosine_similarity(own.hidden[-1:], step.hidden, dim=1).max())
            scores[token] = (1 - penalty_alpha) * probability - penalty_alpha * penalty
        first, second, *_ = sorted(scores.values(), reverse=True)
        token = max(scores, key=scores.__getitem__)
        chosen.append(Step(token, scores, min(first - second, float(best[-2] - best[-1]))))
        text.append(token)
        step = read[token]
    return chosen
