"""Contrastive search by full recomputation: every candidate's text is read from its first token, without a cache.

What a text gives is what transformers' own ``generate`` reads of it, so that the masks, positions and special inputs of
each model type are its own. Nothing here is shared with the way in which the library decodes, but for a hook that
watches a module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.anatomy import captured_outputs

__all__ = ["Step", "read", "recomputed"]


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


def recomputed(model: Any, prompt: list[int], padding: int, penalty_alpha: float, top_k: int, steps: int) -> list[Step]:
    """Contrastive search after ``prompt``, by itself or behind ``padding`` masked tokens.

    Source: Su et al., "A Contrastive Framework for Neural Text Generation", eq. 2; h is the last of the hidden states
    that the model returns.
    """
    text, made = list(prompt), []
    for _ in range(steps):
        hidden, logits = read(model, text, padding)
        probabilities = logits.softmax(-1)
        best, candidates = probabilities.topk(top_k + 1)
        scores: dict[int, float] = {}
        for probability, token in zip(best[:-1].tolist(), candidates[:-1].tolist(), strict=True):
            own = read(model, [*text, token], padding)[0][-1]
            penalty = float(torch.nn.functional.cosine_similarity(own[None], hidden, dim=1).max())
            scores[token] = (1 - penalty_alpha) * probability - penalty_alpha * penalty
        first, second, *_ = sorted(scores.values(), reverse=True)
        token = max(scores, key=lambda each: scores[each])
        made.append(Step(token, scores, min(first - second, float(best[-2] - best[-1]))))
        text.append(token)
    return made


@torch.no_grad()
def read(model: Any, text: list[int], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Hidden states (length, dim) of a text and logits (vocab,) after it, in float32; those of the padding left out."""
    ids = torch.tensor([[0] * padding + text])
    mask = torch.ones_like(ids)
    mask[:, :padding] = 0
    with captured_outputs(model.get_decoder()) as decoded:
        output = model.generate(
            ids, attention_mask=mask, max_new_tokens=1, do_sample=False, use_cache=False, pad_token_id=0,
            output_logits=True, output_hidden_states=True, return_dict_in_generate=True,
        )  # fmt: skip
    hidden = output.hidden_states[0][-1]
    if hidden.dim() != 3:  # Gemma 3n keeps several states a token, and makes one of them at the end
        hidden = decoded[0].last_hidden_state
    return hidden[0, -len(text) :].float(), output.logits[0][0].float()
