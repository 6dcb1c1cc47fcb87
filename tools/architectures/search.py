"""Exactness of contrastive search on a model, against full recomputation, and its way of branching."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import decoding
from decoding.capabilities.capabilities import open_stream
from decoding.errors import DecodingError, one_line
from decoding.tools.architectures.recomputation import Step, recomputed
from decoding.tools.architectures.reference import LENGTHS, Prompt, batch_of, prompts
from decoding.tools.architectures.results import Cell

__all__ = ["contrastive_search"]

ALPHA, TOP_K, STEPS = 0.6, 4, 8
# Where two scores (or the last candidate's probability and the next one's) lie closer than this, float32, whose error
# in a score is about 1e-6, may decide either way: prompts are drawn until no step is so close, SEEDS times at most.
SEPARATED, SEEDS = 2e-5, 6
CLOSE = 1e-5  # between a candidate's score in the search and in the recomputation; mostly it is 2e-7


def contrastive_search(model: Any) -> dict[str, Cell]:
    """The cells "contrastive search" and "left padding" of a model.

    A batch of two prompts with left padding is decoded; tokens, candidates and their scores must be those of full
    recomputation: of each row alone, or, if that differs, of each row after the same padding. If the model's own result
    depends on padding, the search is not at fault.
    """
    rows, alone = _separated(model)
    batch = batch_of(model, rows)
    try:
        way = open_stream(model, **batch).branching
        output = decoding.generate(
            model, **batch, penalty_alpha=ALPHA, top_k=TOP_K, max_new_tokens=STEPS, pad_token_id=0,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    except DecodingError as refusal:
        return {"contrastive search": Cell("refused", one_line(refusal, 300)), "left padding": Cell("-")}
    differs = _difference(output, alone)
    independent = Cell("exact")
    if differs:
        padded = [recomputed(model, row, max(LENGTHS) - len(row.text), ALPHA, TOP_K, STEPS) for row in rows]
        if _distance(alone, padded) > CLOSE:
            independent = Cell("no", "its own result for a text depends on the padding before it, in generate() too")
            differs = _difference(output, padded)
    if differs:
        return {"contrastive search": Cell("wrong", differs), "left padding": independent}
    return {
        "contrastive search": Cell(way.way, "" if way.way == "shared prefix" else way.reason),
        "left padding": independent,
    }


def _separated(model: Any) -> tuple[list[Prompt], list[list[Step]]]:
    """Two prompts without a close step, and the recomputation of each row alone; else those of the widest margin."""
    best: tuple[float, Any] = (-1.0, None)
    for seed in range(SEEDS):
        rows = prompts(seed)
        alone = [recomputed(model, row, 0, ALPHA, TOP_K, STEPS) for row in rows]
        margin = min(step.margin for steps in alone for step in steps)
        if margin > best[0]:
            best = margin, (rows, alone)
        if margin > SEPARATED:
            break
    return best[1]


def _difference(output: Any, expected: list[list[Step]]) -> str:
    """The first difference of a search's output from the recomputation; empty without any."""
    tokens: Tensor = output.sequences[:, max(LENGTHS) :]
    for row, steps in enumerate(expected):
        for i, step in enumerate(steps):
            scores = output.scores[i][row]
            candidates = set(scores.isfinite().nonzero().flatten().tolist())
            where = f"row {row}, token {i}"
            if candidates != set(step.scores):
                return f"{where}: other candidates (margin {step.margin:.0e})"
            error = max(abs(float(scores[token]) - score) for token, score in step.scores.items())
            if error > CLOSE:
                return f"{where}: scores differ by {error:.0e}"
            if int(tokens[row, i]) != step.token:
                return f"{where}: another token (margin {step.margin:.0e})"
    return ""


def _distance(first: list[list[Step]], second: list[list[Step]]) -> float:
    """The largest difference between the scores of two recomputations; infinity where their candidates differ."""
    worst = 0.0
    for steps, others in zip(first, second, strict=True):
        for mine, theirs in zip(steps, others, strict=True):
            if set(mine.scores) != set(theirs.scores):
                return float("inf")
            worst = max(worst, *(abs(score - theirs.scores[token]) for token, score in mine.scores.items()))
    return worst
