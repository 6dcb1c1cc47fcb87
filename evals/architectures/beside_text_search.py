"""Whether contrastive search is exact on models that read more than a text: encoder-decoders, images, sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import decoding
from decoding.branching import branching_of
from decoding.errors import DecodingError
from decoding.evals.architectures.readings import Prompt, batch_of, said
from decoding.loading import one_line

__all__ = ["BesideTextSearch", "search"]

ALPHA, TOP_K, STEPS = 0.6, 4, 5
CLOSE = 1e-4  # between scores of a batch with a cache and of one text without; float32 sums in another order
SEEDS = 3  # of prompts: where the last candidate is as probable as the first that is none, either may be one


@dataclass(frozen=True)
class BesideTextSearch:
    """What a check found.

    Attributes:
        exact: whether contrastive search gave the tokens and scores of full recomputation.
        way: "shared prefix" or "fork"; empty where it was refused.
        reason: what was compared, or why not.
    """

    exact: bool
    way: str
    reason: str


def search(model: Any, make_prompts: Callable[[int], list[Prompt]]) -> BesideTextSearch:
    """Run contrastive search on a batch of two prompts and recompute every score of every step from the first token.

    Args:
        model: a tiny model.
        make_prompts: from a seed to the two.
    """
    difference, against = None, ""
    for seed in range(SEEDS):
        rows = make_prompts(seed)
        try:
            output = decoding.generate(
                model, **batch_of(model, rows), penalty_alpha=ALPHA, top_k=TOP_K, max_new_tokens=STEPS,
                pad_token_id=0, output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
        except DecodingError as refusal:
            return BesideTextSearch(False, "", one_line(refusal))
        tokens, scores = output.sequences[:, -STEPS:].tolist(), torch.stack(output.scores, dim=1)
        for against in ("full recomputation", "full recomputation behind the padding"):
            longest = max(len(row.text) for row in rows) if "padding" in against else 0
            differences = [
                _difference(model, row, max(0, longest - len(row.text)), *told)
                for row, *told in zip(rows, tokens, scores, strict=True)
            ]
            difference = next((each for each in differences if each is not None), None)
            if difference is None:
                way = "shared prefix" if branching_of(_decoding_part(model)).shared else "fork"
                return BesideTextSearch(True, way, f"against {against}")
    return BesideTextSearch(False, "", f"contrastive search differs from full recomputation: {difference}")


def _decoding_part(model: Any) -> Any:
    """The model that makes the text: some hand everything that they have read to a language model of their own."""
    inner = getattr(model, "language_model", None)
    return inner if inner is not None and model.get_output_embeddings() is inner.get_output_embeddings() else model


def _difference(model: Any, row: Prompt, padding: int, tokens: list[int], scores: Tensor) -> str | None:
    """Where tokens and scores (steps, vocab) of a row are not those of eq. 2 of Su et al.; None where all are."""
    for step, token in enumerate(tokens):
        read = said(model, row, padding)[-1]
        best, candidates = read.logits.softmax(-1).topk(TOP_K)
        for probability, candidate in zip(best.tolist(), candidates.tolist(), strict=True):
            own = said(model, replace(row, text=[*row.text, candidate]), padding)[-1].hidden[-1:]
            penalty = float(torch.nn.functional.cosine_similarity(own, read.hidden, dim=1).max())
            error = abs((1 - ALPHA) * probability - ALPHA * penalty - float(scores[step, candidate]))
            if not error < CLOSE:
                return f"step {step}: the score of token {candidate} is {error:.1e} off"
        if token not in candidates.tolist() or scores[step, token] < scores[step].max():
            return f"step {step}: token {token}"
        row = replace(row, text=[*row.text, token])
    return None
