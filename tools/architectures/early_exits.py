"""Early exits from a model's lower layers: DoLa against full recomputation.

Every text is read from its first token, without a cache or a batch. The logits of a lower layer are those of the model
while the layers above pass on their input; those of a raw state are the head's on the ``hidden_states`` that the model
returns. Nothing here is shared with the library's decoding.
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
from decoding.tools.architectures.reference import (
    Prompt,
    ReferenceStep,
    batch_of,
    of_one_length,
    prompts,
    reference_steps,
)
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

LayerLogits = tuple[Tensor, list[Tensor]]  # logits (vocab,) of the last layer, and of each lower one


@dataclass(frozen=True)
class EarlyExits:
    """The result of a check.

    Attributes:
        exact: whether DoLa's tokens and scores were those of full recomputation.
        reason: the comparison, or why there was none.
        refused: whether the library raised an error that names the model.
    """

    exact: bool
    reason: str
    refused: bool = False


def early_exits(model: Any, make_prompts: Callable[[int], list[Prompt]] = prompts) -> dict[str, Cell]:
    """The column of early exits."""
    result = check(model, make_prompts)
    if result.exact:
        plain = result.reason.endswith("compared with full recomputation")
        return {"early exits": Cell("yes", "" if plain else f"early exits: {result.reason}")}
    return {"early exits": Cell("refused" if result.refused else "wrong", result.reason)}


def check(model: Any, make_prompts: Callable[[int], list[Prompt]] = prompts) -> EarlyExits:
    """Run DoLa over every lower layer on a batch of two prompts, the shorter one left-padded.

    Args:
        model: a tiny model.
        make_prompts: a function from a seed to the two prompts.
    """
    padded = _check(model, make_prompts)
    if padded.exact or padded.refused:
        return padded
    unpadded = _check(model, lambda seed: of_one_length(make_prompts(seed)))
    if not unpadded.exact:
        return padded
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
            oracle = _Oracle(model, layers, final_norm)
            if not oracle.applies(rows[0]):
                break  # DoLa does compute something, but there is no formula to compare with
            difference, against = oracle.difference(rows, tokens, scores)
            if difference is None:
                compared.append("as if the model ended there" if final_norm else "without the final norm")
                break
            if not difference.endswith(UNDECIDED) or seed == SEEDS - 1:
                return EarlyExits(False, f"DoLa differs from full recomputation: {difference}")
    return EarlyExits(True, f"{len(layers)} lower layers, {' and '.join(compared)}, compared with {against}")


def _generated(
    model: Any, rows: list[Prompt], layers: tuple[int, ...], final_norm: bool
) -> tuple[list[list[int]], Tensor]:
    """The library's new tokens of each row and their scores (rows, steps, vocab)."""
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

    def applies(self, row: Prompt) -> bool:
        """Return whether the logits of lower layers are defined.

        Those of raw states are if the first of ``hidden_states`` is the input of the first layer (Mamba's is its
        output), and the last, up to a scale, the input of the head.
        """
        if self.final_norm:
            return True
        step = reference_steps(self.model, row)[-1]
        if any(step.states[layer].shape != step.head_input.shape for layer in (*self.layers, -1)):
            return False
        first, second, *_ = reference_steps(self.model, row, ended_after=1)[-1].states
        is_head_input = float(torch.nn.functional.cosine_similarity(step.states[-1], step.head_input, dim=0)) > 1 - 1e-5
        return is_head_input and not torch.equal(first, second)

    def difference(self, rows: list[Prompt], tokens: list[list[int]], scores: Tensor) -> tuple[str | None, str]:
        """The first difference from the model's tokens or scores, None without any; and the reference that they equal.

        A model may itself compute another result with left padding, or with its cache; then that is the reference.
        """
        longest = max(len(row.text) for row in rows)
        references: dict[str, Callable[[Prompt, list[int], int], list[LayerLogits]]] = {
            "full recomputation": lambda row, new, _: self._recomputed(row, 0, new),
            "full recomputation with left padding": lambda row, new, padding: self._recomputed(row, padding, new),
            "the model's own result with its cache, which differs from full recomputation": (
                lambda row, new, padding: self._cached(row, padding, new)
            ),
        }
        first = None
        for name, reference in references.items():
            difference = None
            for number, (row, new, row_scores) in enumerate(zip(rows, tokens, scores, strict=True)):
                padding = longest - len(row.text)
                difference = difference or _difference(reference(row, new, padding), new, row_scores, f"row {number}")
            if difference is None:
                return None, name
            first = first or difference
        return first, ""

    def _recomputed(self, row: Prompt, padding: int, new: list[int]) -> list[LayerLogits]:
        """The logits of each text, from its first token."""
        texts = [replace(row, text=[*row.text, *new[:step]]) for step in range(len(new))]
        return [self._logits(row, padding, ())[-1] for row in texts]

    def _cached(self, row: Prompt, padding: int, new: list[int]) -> list[LayerLogits]:
        """The logits of each token after the model's own cache of the tokens before it."""
        return self._logits(row, padding, new[:-1])

    def _logits(self, row: Prompt, padding: int, forced: Sequence[int]) -> list[LayerLogits]:
        steps = reference_steps(self.model, row, padding, forced)
        if self.final_norm:
            ended = [reference_steps(self.model, row, padding, forced, layer) for layer in self.layers]
            return [(step.logits, [layer[i].logits for layer in ended]) for i, step in enumerate(steps)]
        return [(step.logits, self._raw(step)) for step in steps]

    def _raw(self, step: ReferenceStep) -> list[Tensor]:
        head = self.model.get_output_embeddings()
        return [head(step.states[layer])[: len(step.logits)].detach() for layer in self.layers]


def _difference(logits: list[LayerLogits], tokens: list[int], scores: Tensor, row: str) -> str | None:
    """The first difference of tokens and scores (steps, vocab) from DoLa's formula on logits; None without any."""
    for step, ((final, early), token) in enumerate(zip(logits, tokens, strict=True)):
        expected, tied = _dola(final.double(), [layer.double() for layer in early])
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
    for layer in early:
        premature = layer.log_softmax(-1)
        mean = torch.logaddexp(last, premature) - math.log(2)
        divergences.append(float((mean.exp() * (2 * mean - last - premature)).sum() / 2))
    chosen = early[max(range(len(early)), key=lambda i: divergences[i])].log_softmax(-1)
    tied = len(early) > 1 and sorted(divergences)[-2] > max(divergences) * (1 - TIED)
    return (last - chosen).masked_fill(last.exp() < ALPHA * last.exp().max(), -math.inf), tied
