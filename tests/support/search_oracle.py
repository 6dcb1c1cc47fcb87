"""Contrastive search by full recomputation: each candidate reads the whole text, in float64, no cache, no padding."""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import torch
from torch import Tensor


def contrastive_search_tokens(*arguments: Any, **more: Any) -> list[int]:
    """The tokens chosen; takes what :func:`contrastive_search_steps` takes."""
    return [token for token, _ in contrastive_search_steps(*arguments, **more)]


@torch.no_grad()
def contrastive_search_steps(
    model: Any,
    prompt: list[int],
    alpha: float,
    k: int,
    steps: int,
    encoder_ids: list[int] | None = None,
    window: int | None = None,
) -> list[tuple[int, dict[int, float]]]:
    """For each step after ``prompt`` (the decoder's, where ``encoder_ids`` are the encoder's) the token chosen, and the
    contrastive score of every candidate, where the penalty looks ``window`` tokens back.
    """
    model = copy.deepcopy(model).double()
    text, chosen = list(prompt), []
    (hidden,), (logits,) = _read(model, [text], encoder_ids)
    for _ in range(steps):
        probabilities = logits[-1].softmax(-1)
        read = _read_candidates(model, text, probabilities.topk(k).indices.tolist(), encoder_ids)
        scores = {
            token: (1 - alpha) * float(probabilities[token]) - alpha * _similarity(own[-1], hidden[-(window or 0) :])
            for token, (own, _) in read.items()
        }
        best = max(scores, key=lambda token: scores[token])
        chosen.append((best, scores))
        text.append(best)
        hidden, logits = read[best]
    return chosen


@torch.no_grad()
def adaptive_search_steps(
    model: Any, prompt: list[int], q: float, least: int, most: int, steps: int, encoder_ids: list[int] | None = None
) -> list[tuple[int, dict[int, float]]]:
    """As :func:`contrastive_search_steps`, with k and α of adaptive contrastive search."""
    model = copy.deepcopy(model).double()
    text, chosen = list(prompt), []
    uncertainties: list[float] = []
    of_candidates: list[float] = []

    def share(entropy: float, before: list[float], largest: float) -> float:
        distance = (entropy - (statistics.median(before) if before else entropy)) / largest
        distance = min(max(distance, -1.0), 1.0)
        up, down = (1 + distance) ** (q / 2), (1 - distance) ** (q / 2)  # σ(q·artanh) without its infinities
        return up / (up + down)

    (hidden,), (logits,) = _read(model, [text], encoder_ids)
    for _ in range(steps):
        p = logits[-1].softmax(-1)
        uncertainty = -math.fsum(x * math.log(x) for x in p.tolist() if x > 0)
        k = round(least + (most - least) * share(uncertainty, uncertainties, math.log(len(p))))
        best = p.topk(k)
        among = (best.values / best.values.sum()).tolist()
        candidate_uncertainty = -math.fsum(x * math.log(x) for x in among if x > 0)
        alpha = share(candidate_uncertainty, of_candidates, math.log(max(k, 2)))
        read = _read_candidates(model, text, best.indices.tolist(), encoder_ids)
        scores = {
            token: (1 - alpha) * float(p[token]) - alpha * _similarity(own[-1], hidden)
            for token, (own, _) in read.items()
        }
        chosen.append((max(scores, key=lambda token: scores[token]), scores))
        text.append(chosen[-1][0])
        hidden, logits = read[text[-1]]
        uncertainties.append(uncertainty)
        of_candidates.append(candidate_uncertainty)
    return chosen


def _similarity(own: Tensor, past: Tensor) -> float:
    """The largest cosine similarity of a (dim,) state to (length, dim) states."""
    return float(torch.nn.functional.cosine_similarity(own[None], past).max())


def _read_candidates(
    model: Any, text: list[int], tokens: list[int], encoder_ids: list[int] | None
) -> dict[int, tuple[Tensor, Tensor]]:
    """States and logits of the text with each of these tokens at its end, by token."""
    states = zip(*_read(model, [[*text, token] for token in tokens], encoder_ids), strict=True)
    return dict(zip(tokens, states, strict=True))


def _read(model: Any, rows: list[list[int]], encoder_ids: list[int] | None) -> tuple[Tensor, Tensor]:
    """(rows, length, dim) last hidden states and (rows, length, vocab) logits of texts of one length."""
    if encoder_ids is None:
        output = model(torch.tensor(rows), use_cache=False, output_hidden_states=True)
        return output.hidden_states[-1], output.logits
    output = model(
        torch.tensor([encoder_ids] * len(rows)), decoder_input_ids=torch.tensor(rows), use_cache=False,
        output_hidden_states=True,
    )  # fmt: skip
    return output.decoder_hidden_states[-1], output.logits
