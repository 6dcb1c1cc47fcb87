"""Exactness of contrastive search on models with other inputs than the text before."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import decoding
from decoding.capabilities.branching import branching_of
from decoding.errors import DecodingError, one_line
from decoding.tools.architectures.early_exits import check, early_exits
from decoding.tools.architectures.images import prompts_with_images
from decoding.tools.architectures.other_inputs import prompts_of, tiny_other_inputs
from decoding.tools.architectures.reference import Prompt, batch_of, of_one_length, prompts, reference_steps
from decoding.tools.architectures.results import Cell
from decoding.tools.architectures.tiny import tiny_model

__all__ = ["CACHE_COLUMNS", "OTHER_INPUTS_COLUMNS", "SearchCheck", "other_inputs", "quantised_cache", "search"]

OTHER_INPUTS_COLUMNS = ("contrastive search", "early exits", "with an image")
CACHE_COLUMNS = ("contrastive search",)

ALPHA, TOP_K, STEPS = 0.6, 4, 5
CLOSE = 3e-4  # between scores of a batch with a cache and of one text without; float32 sums in another order
ATTEMPTS = 4  # at texts with images
SEEDS = 3  # of prompts: where the last candidate is as probable as the first that is none, either may be one


@dataclass(frozen=True)
class SearchCheck:
    """The result of a check.

    Attributes:
        exact: whether tokens and scores of contrastive search were those of full recomputation.
        way: "shared prefix", "fork" or "wrong"; empty where it was refused.
        reason: the comparison, or why there was none.
    """

    exact: bool
    way: str
    reason: str


def other_inputs(model_type: str) -> dict[str, Cell]:
    """The cells of a type of :func:`other_input_types`."""
    model = tiny_other_inputs(model_type)
    cells = {"contrastive search": _cell(search(model, prompts_of(model)))}
    cells |= early_exits(model, prompts_of(model))
    images = prompts_with_images(model)
    if images is not None:
        cells["with an image"] = _with_images(model, images)
    return cells


def _with_images(model: Any, images: Callable[[int], list[Prompt]]) -> Cell:
    for attempt in range(ATTEMPTS):
        make_prompts = functools.partial(_moved_on, images, attempt * SEEDS)
        try:
            searched, exits = search(model, make_prompts), check(model, make_prompts)
        except ValueError:
            continue  # random models write image tokens, for which the recomputed text has no image
        reason = "; ".join(result.reason for result in (searched, exits) if not result.exact)
        refused = (not searched.exact and not searched.way) or exits.refused
        return Cell("exact" if not reason else "refused" if refused else "wrong", reason)
    return Cell("-")


def _moved_on(images: Callable[[int], list[Prompt]], by: int, seed: int) -> list[Prompt]:
    return images(seed + by)


def quantised_cache(backend: str) -> dict[str, Cell]:
    """The cell of a quantised cache: one prompt, on a model with tree attention.

    (HQQ packs the rows of a batch together, so that a row's values depend on the batch.)
    """
    settings = {} if backend == "fp8" else {"nbits": 4, "q_group_size": 8, "residual_length": 4}
    searched = search(
        tiny_model("llama"), lambda seed: prompts(seed)[1:], cached_only=True,
        cache_implementation="quantized", cache_config={"backend": backend, **settings},
    )  # fmt: skip
    return {"contrastive search": _cell(searched)}


def _cell(searched: SearchCheck) -> Cell:
    plain = searched.reason == next(iter(REFERENCES))
    return (
        Cell(searched.way, "" if plain else searched.reason)
        if searched.exact
        else Cell("wrong" if searched.way else "refused", searched.reason)
    )


def search(
    model: Any, make_prompts: Callable[[int], list[Prompt]], cached_only: bool = False, **options: Any
) -> SearchCheck:
    """Run contrastive search on a batch of two prompts and recompute every score of every step from the first token.

    Args:
        model: a tiny model.
        make_prompts: a function from a seed to the two prompts.
        cached_only: compare with the model's own result with its cache, for caches that lose precision.
        options: of ``generate``.
    """
    padded = _search(model, make_prompts, cached_only, options)
    if padded.exact or not padded.way:
        return padded
    unpadded = _search(model, lambda seed: of_one_length(make_prompts(seed)), cached_only, options)
    if not unpadded.exact:
        return padded
    return replace(
        unpadded, reason=f"{unpadded.reason}, without padding: with padding the model itself computes another result"
    )


def _search(
    model: Any, make_prompts: Callable[[int], list[Prompt]], cached_only: bool, options: dict[str, Any]
) -> SearchCheck:
    difference, against = None, ""
    for seed in range(SEEDS):
        rows = make_prompts(seed)
        try:
            output = decoding.generate(
                model, **batch_of(model, rows), penalty_alpha=ALPHA, top_k=TOP_K, max_new_tokens=STEPS,
                pad_token_id=0, output_scores=True, return_dict_in_generate=True, **options,
            )  # fmt: skip
        except DecodingError as refusal:
            return SearchCheck(False, "", one_line(refusal))
        tokens, scores = output.sequences[:, -STEPS:].tolist(), torch.stack(output.scores, dim=1)
        for against, reference in list(REFERENCES.items())[-1 if cached_only else 0 :]:
            longest = max(len(row.text) for row in rows) if "alone" not in against else 0
            differences = [
                _difference(reference, model, row, max(0, longest - len(row.text)), new, row_scores, options)
                for row, new, row_scores in zip(rows, tokens, scores, strict=True)
            ]
            first = next((text for text in differences if text is not None), None)
            if first is None:
                way = branching_of(_decoding_part(model), padded=len({len(row.text) for row in rows}) > 1).way
                return SearchCheck(True, way, against)
            difference = difference or first
    return SearchCheck(False, "wrong", f"contrastive search differs from full recomputation: {difference}")


def _decoding_part(model: Any) -> Any:
    """The model that generates the text: some pass all their inputs on to a language model inside."""
    inner = getattr(model, "language_model", None)
    return inner if inner is not None and model.get_output_embeddings() is inner.get_output_embeddings() else model


# A function that returns history (n, dim) and logits (vocab,) of a row's prompt and the tokens after it.
Oracle = Callable[[Any, Prompt, int, list[int], dict[str, Any]], tuple[Tensor, Tensor]]


def _from_first_token(
    model: Any, row: Prompt, padding: int, new: list[int], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    step = reference_steps(model, replace(row, text=[*row.text, *new]), padding)[-1]
    return step.hidden, step.logits


def _cached(model: Any, row: Prompt, padding: int, new: list[int], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    steps = reference_steps(model, row, padding, new, **options)
    return torch.cat([step.hidden for step in steps]), steps[-1].logits


# A model may itself compute another result with left padding, or for generated tokens than for a prompt (in a prompt
# PaliGemma attends to later tokens too); then that result is the reference.
REFERENCES: dict[str, Oracle] = {
    "full recomputation of each row alone": _from_first_token,
    "full recomputation with left padding": _from_first_token,
    "the model's own result with its cache, which differs from full recomputation": _cached,
}


def _difference(
    reference: Oracle,
    model: Any,
    row: Prompt,
    padding: int,
    tokens: list[int],
    scores: Tensor,
    options: dict[str, Any],
) -> str | None:
    """The first difference of a row's tokens and scores (steps, vocab) from eq. 2 of Su et al.; None without any."""
    for step, token in enumerate(tokens):
        history, logits = reference(model, row, padding, tokens[:step], options)
        best, candidates = logits.softmax(-1).topk(TOP_K)
        for probability, candidate in zip(best.tolist(), candidates.tolist(), strict=True):
            state = reference(model, row, padding, [*tokens[:step], candidate], options)[0][-1:]
            penalty = float(torch.nn.functional.cosine_similarity(state, history, dim=1).max())
            error = abs((1 - ALPHA) * probability - ALPHA * penalty - float(scores[step, candidate]))
            if not error < CLOSE:
                return f"step {step}: the score of token {candidate} is {error:.1e} off"
        if token not in candidates.tolist() or scores[step, token] < scores[step].max():
            return f"step {step}: token {token}"
    return None
