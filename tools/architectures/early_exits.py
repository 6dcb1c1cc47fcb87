"""Whether a model's lower layers can be left at: DoLa on it against full recomputation.

Every text is read from its first token, without a cache or a batch. What a model would say if it ended after some of
its layers is what it does say while the others hand on what they are given; what its head says of a raw state is that
of the ``hidden_states`` which it returns. Nothing here is shared with the way in which the library decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import decoding
from decoding.errors import DecodingError, one_line
from decoding.models.layers import depth_of
from decoding.tools.architectures.readings import Prompt, Said, batch_of, of_one_length, prompts, said
from decoding.tools.architectures.results import Cell

__all__ = ["EarlyExits", "check", "early_exits"]

STEPS = 5
ALPHA = 0.1
# Between scores of a batch with a cache and those of one text without, and relative to the largest score where that is
# more than 1: float32 sums in another order.
CLOSE = 2e-3
# Two layers that diverge from the last as much as each other to this share: float32 leaves the choice of one open, and
# new prompts are drawn.
TIED = 1e-4
UNDECIDED = "two layers tie"
SEEDS = 3

Told = tuple[Tensor, list[Tensor]]  # logits (vocab,) of the last layer, and of each lower one


@dataclass(frozen=True)
class EarlyExits:
    """What a check found.

    Attributes:
        exact: whether DoLa gave the tokens and scores of full recomputation.
        reason: what was compared, or why not.
        refused: whether the library said itself that the model cannot be read so.
    """

    exact: bool
    reason: str
    refused: bool = False


def early_exits(model: Any, make_prompts: Callable[[int], list[Prompt]] = prompts) -> dict[str, Cell]:
    """The column of early exits."""
    found = check(model, make_prompts)
    if found.exact:
        plain = found.reason.endswith("compared with full recomputation")
        return {"early exits": Cell("yes", "" if plain else f"early exits: {found.reason}")}
    return {"early exits": Cell("refused" if found.refused else "wrong", found.reason)}


def check(model: Any, make_prompts: Callable[[int], list[Prompt]] = prompts) -> EarlyExits:
    """Run DoLa over every lower layer on a batch of two prompts, the shorter one left-padded.

    Args:
        model: a tiny model.
        make_prompts: from a seed to the two.
    """
    found = _check(model, make_prompts)
    if found.exact or found.refused:
        return found
    unpadded = _check(model, lambda seed: of_one_length(make_prompts(seed)))
    if not unpadded.exact:
        return found
    return replace(
        unpadded, reason=f"{unpadded.reason}; without padding: with padding the model itself computes another result"
    )


def _check(model: Any, make_prompts: Callable[[int], list[Prompt]]) -> EarlyExits:
    layers: tuple[int, ...] = ()
    compared, against = [], ""
    for final_norm in (True, False):
        for seed in range(SEEDS):
            rows = make_prompts(seed)
            try:
                layers = tuple(range(1, depth_of(model))) or (0,)
                tokens, scores = _generated(model, rows, layers, final_norm)
            except DecodingError as refusal:
                return EarlyExits(False, one_line(refusal), refused=True)
            told = _Oracle(model, layers, final_norm)
            if not told.reads(rows[0]):
                break  # DoLa does read something, but no formula says what
            difference, against = told.difference(rows, tokens, scores)
            if difference is None:
                compared.append("as if the model ended there" if final_norm else "without the final norm")
                break
            if not difference.endswith(UNDECIDED) or seed == SEEDS - 1:
                return EarlyExits(False, f"DoLa differs from full recomputation: {difference}")
    return EarlyExits(True, f"{len(layers)} lower layers, {' and '.join(compared)}, compared with {against}")


def _generated(
    model: Any, rows: list[Prompt], layers: tuple[int, ...], final_norm: bool
) -> tuple[list[list[int]], Tensor]:
    """New tokens of each row and their scores (rows, steps, vocab), as the library makes them."""
    strategy = decoding.DoLa(layers, ALPHA, final_norm=final_norm)
    output = decoding.generate(
        model, **batch_of(model, rows), strategy=strategy, max_new_tokens=STEPS, pad_token_id=0,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    return output.sequences[:, -STEPS:].tolist(), torch.stack(output.scores, dim=1)


@dataclass(frozen=True)
class _Oracle:
    model: Any
    layers: tuple[int, ...]
    final_norm: bool

    def reads(self, row: Prompt) -> bool:
        """Whether lower layers can be read so.

        Raw ones are where the first of ``hidden_states`` is what the first layer is given (Mamba's is what it gives),
        and the last, up to a scale, what the head is given.
        """
        if self.final_norm:
            return True
        step = said(self.model, row)[-1]
        if any(step.states[layer].shape != step.spoken.shape for layer in (*self.layers, -1)):
            return False
        first, second, *_ = said(self.model, row, ended_after=1)[-1].states
        spoken_as_it_is = float(torch.nn.functional.cosine_similarity(step.states[-1], step.spoken, dim=0)) > 1 - 1e-5
        return spoken_as_it_is and not torch.equal(first, second)

    def difference(self, rows: list[Prompt], tokens: list[list[int]], scores: Tensor) -> tuple[str | None, str]:
        """Where tokens or scores are not the model's, None where all are; and the reading that they are of.

        A model may itself compute another result with left padding, or with its cache; then that is the one to equal.
        """
        longest = max(len(row.text) for row in rows)
        readings: dict[str, Callable[[Prompt, list[int], int], list[Told]]] = {
            "full recomputation": lambda row, new, _: self._recomputed(row, 0, new),
            "full recomputation with left padding": lambda row, new, padding: self._recomputed(row, padding, new),
            "the model's own result with its cache, which differs from full recomputation": (
                lambda row, new, padding: self._cached(row, padding, new)
            ),
        }
        first = None
        for name, reading in readings.items():
            found = None
            for number, (row, new, given) in enumerate(zip(rows, tokens, scores, strict=True)):
                padding = longest - len(row.text)
                found = found or _difference(reading(row, new, padding), new, given, f"row {number}")
            if found is None:
                return None, name
            first = first or found
        return first, ""

    def _recomputed(self, row: Prompt, padding: int, new: list[int]) -> list[Told]:
        """Each text from its first token."""
        texts = [replace(row, text=[*row.text, *new[:step]]) for step in range(len(new))]
        return [self._told(row, padding, ())[-1] for row in texts]

    def _cached(self, row: Prompt, padding: int, new: list[int]) -> list[Told]:
        """Each token after the model's own cache of the tokens before it."""
        return self._told(row, padding, new[:-1])

    def _told(self, row: Prompt, padding: int, forced: Sequence[int]) -> list[Told]:
        steps = said(self.model, row, padding, forced)
        if self.final_norm:
            ended = [said(self.model, row, padding, forced, layer) for layer in self.layers]
            return [(step.logits, [each[i].logits for each in ended]) for i, step in enumerate(steps)]
        return [(step.logits, self._raw(step)) for step in steps]

    def _raw(self, step: Said) -> list[Tensor]:
        head = self.model.get_output_embeddings()
        return [head(step.states[layer])[: len(step.logits)].detach() for layer in self.layers]


def _difference(told: list[Told], tokens: list[int], scores: Tensor, row: str) -> str | None:
    """Where tokens and scores (steps, vocab) are not those that DoLa makes of what was told."""
    for step, ((final, early), token) in enumerate(zip(told, tokens, strict=True)):
        expected, tied = _dola(final.double(), [each.double() for each in early])
        where = f"{row}, step {step}" + (f", where {UNDECIDED}" if tied else "")
        if not expected[token] > expected.max() - CLOSE:
            return f"token {token}, not {int(expected.argmax())}, in {where}"
        both = expected.isfinite() & scores[step].isfinite()
        error = float((expected - scores[step].double())[both].abs().max())
        if not error < CLOSE * max(1.0, float(expected[both].abs().max())):
            return f"scores are {error:.1e} off in {where}"
    return None


def _dola(final: Tensor, early: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """Scores (vocab,) of one step, log p_N - log p_j where p_N >= α·max p_N, and whether the choice of j is a tie.

    j is the layer that diverges most.

    Source: Chuang et al., 2309.03883; the divergence is that of its public code, ½[KL(M‖p_N) + KL(M‖p_j)].
    """
    last = final.log_softmax(-1)
    divergences = []
    for each in early:
        other = each.log_softmax(-1)
        mean = torch.logaddexp(last, other) - math.log(2)
        divergences.append(float((mean.exp() * (2 * mean - last - other)).sum() / 2))
    chosen = early[max(range(len(early)), key=lambda i: divergences[i])].log_softmax(-1)
    tied = len(early) > 1 and sorted(divergences)[-2] > max(divergences) * (1 - TIED)
    return (last - chosen).masked_fill(last.exp() < ALPHA * last.exp().max(), -math.inf), tied
