"""Contrastive search by full recomputation: each candidate reads the whole text, in float64, no cache, no padding."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
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
    expected: Sequence[int] = (),
) -> list[tuple[int, dict[int, float]]]:
    """For each step after ``prompt`` (the decoder's, where ``encoder_ids`` are the encoder's) the token chosen, and the
    contrastive score of every candidate, where the penalty looks ``window`` tokens back.

    Where the tokens are those that are expected, the texts of all steps are read at once.
    """
    texts = _Texts(model, encoder_ids)
    texts.expect(prompt, expected[:steps], lambda logits: [k] * len(logits))
    text, chosen = list(prompt), []
    hidden, logits = texts.read([text])[0]
    for _ in range(steps):
        probabilities = logits.softmax(-1)
        read = texts.with_candidates(text, probabilities.topk(k).indices.tolist())
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
    model: Any,
    prompt: list[int],
    q: float,
    least: int,
    most: int,
    steps: int,
    encoder_ids: list[int] | None = None,
    expected: Sequence[int] = (),
) -> list[tuple[int, dict[int, float]]]:
    """As :func:`contrastive_search_steps`, with k and α of adaptive contrastive search."""
    of_candidates: list[float] = []

    def share(entropy: float, before: list[float], largest: float) -> float:
        distance = (entropy - (statistics.median(before) if before else entropy)) / largest
        distance = min(max(distance, -1.0), 1.0)
        up, down = (1 + distance) ** (q / 2), (1 - distance) ** (q / 2)  # σ(q·artanh) without its infinities
        return up / (up + down)

    def numbers(of_steps: Sequence[Tensor], before: Sequence[float] = ()) -> list[int]:
        """The number of candidates of each step."""
        uncertainties, found = list(before), []
        for logits in of_steps:
            uncertainty = _entropy(logits.softmax(-1).tolist())
            found.append(round(least + (most - least) * share(uncertainty, uncertainties, math.log(len(logits)))))
            uncertainties.append(uncertainty)
        return found

    texts = _Texts(model, encoder_ids)
    texts.expect(prompt, expected[:steps], numbers)
    text, chosen = list(prompt), []
    uncertainties: list[float] = []
    hidden, logits = texts.read([text])[0]
    for _ in range(steps):
        p = logits.softmax(-1)
        (k,) = numbers([logits], uncertainties)
        best = p.topk(k)
        among = (best.values / best.values.sum()).tolist()
        candidate_uncertainty = _entropy(among)
        alpha = share(candidate_uncertainty, of_candidates, math.log(max(k, 2)))
        read = texts.with_candidates(text, best.indices.tolist())
        scores = {
            token: (1 - alpha) * float(p[token]) - alpha * _similarity(own[-1], hidden)
            for token, (own, _) in read.items()
        }
        chosen.append((max(scores, key=lambda token: scores[token]), scores))
        text.append(chosen[-1][0])
        hidden, logits = read[text[-1]]
        uncertainties.append(_entropy(p.tolist()))
        of_candidates.append(candidate_uncertainty)
    return chosen


def _entropy(probabilities: Sequence[float]) -> float:
    """In nats."""
    return -math.fsum(x * math.log(x) for x in probabilities if x > 0)


def _similarity(own: Tensor, past: Tensor) -> float:
    """The largest cosine similarity of a (dim,) state to (length, dim) states."""
    return float(torch.nn.functional.cosine_similarity(own[None], past).max())


class _Texts:
    """(length, dim) states and (vocab,) last logits of a model's texts in float64.

    Many texts are read in one pass. Those that are shorter have tokens behind their end, which no token before them
    sees.
    """

    ROWS = 64  # of a pass

    def __init__(self, model: Any, encoder_ids: list[int] | None) -> None:
        self.model, self.encoder_ids = copy.deepcopy(model).double(), encoder_ids
        self.known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def expect(
        self, prompt: list[int], expected: Sequence[int], numbers: Callable[[Sequence[Tensor]], list[int]]
    ) -> None:
        """Read the texts of all steps whose tokens are those that are expected, with each of the candidates, whose
        ``numbers`` follow from the logits of the steps.
        """
        if not expected:
            return
        text, ends, rows = [*prompt, *expected], range(len(prompt), len(prompt) + len(expected)), []
        (states,), (logits,) = _read(self.model, [text], self.encoder_ids)
        for end, k in zip(ends, numbers([logits[end - 1] for end in ends]), strict=True):
            self.known[tuple(text[:end])] = states[:end], logits[end - 1]
            rows += [[*text[:end], token] for token in logits[end - 1].topk(k).indices.tolist()]
        self.read(rows)

    def read(self, rows: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
        """States and logits of each text, which are read unless they have been."""
        new = [row for row in rows if tuple(row) not in self.known]
        for start in range(0, len(new), self.ROWS):
            some = new[start : start + self.ROWS]
            width = max(map(len, some))
            padded = [[*row, *row[-1:] * (width - len(row))] for row in some]
            for row, states, logits in zip(some, *_read(self.model, padded, self.encoder_ids), strict=True):
                self.known[tuple(row)] = states[: len(row)], logits[len(row) - 1].clone()
        return [self.known[tuple(row)] for row in rows]

    def with_candidates(self, text: list[int], tokens: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """States and logits of the text with each of these tokens at its end, by token."""
        return dict(zip(tokens, self.read([[*text, token] for token in tokens]), strict=True))


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
