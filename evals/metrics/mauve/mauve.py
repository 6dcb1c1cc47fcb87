"""MAUVE through mauve-text, 0 to 100, on the features of any local model."""

from __future__ import annotations

from typing import Any

from decoding.evals.metrics.distribution import MAX_LENGTH, mauve
from decoding.evals.metrics.modules import TEXT, metric_module
from decoding.models.loading import load

CITATION = "Pillutla et al., MAUVE: Measuring the Gap Between Neural Text and Human Text, NeurIPS 2021"


def compute(
    predictions: list[str],
    references: list[str],
    model: str,
    device: str | None = None,
    max_length: int = MAX_LENGTH,
    same_length: bool = False,
    seed: int = 25,
) -> dict[str, Any]:
    """Compute MAUVE.

    Args:
        predictions: generated texts.
        references: human texts; as many as predictions.
        model: folder or hub name of the model whose features are compared; gpt2-large for figures like the published
            ones.
        device: cpu, cuda, ...; by default cuda if there is one.
        max_length: cut texts to so many tokens.
        same_length: cut text and reference i to the shorter of the two, as Su et al. do.
        seed: of the clustering.

    Returns:
        mauve, buckets
    """
    score = mauve(
        predictions, references, *load(model, device), max_length=max_length, same_length=same_length, seed=seed
    )
    return {"mauve": score.score, "buckets": score.buckets}


Mauve = metric_module(compute, __doc__, CITATION, {"predictions": TEXT, "references": TEXT})
