"""MAUVE through mauve-text, 0 to 100, on the features of any local model."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from decoding.evals.metrics.distribution import MAX_LENGTH, mauve
from decoding.models.loading import load

INPUTS = """
Args:
    predictions: generated texts.
    references: human texts; as many as predictions.
    model: folder or hub name of the model that gives features; gpt2-large gives figures like the published ones.
    device: cpu, cuda, ...; by default cuda if there is one.
    max_length: cut texts to so many tokens.
    same_length: cut text and reference i to the shorter of the two, as Su et al. do.
    seed: of the clustering.

Returns:
    mauve, buckets
"""

CITATION = "Pillutla et al., MAUVE: Measuring the Gap Between Neural Text and Human Text, NeurIPS 2021"


class MauveOfTexts(evaluate.Metric):
    """The module that ``evaluate.load`` finds in this folder."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        model: str,
        device: str | None = None,
        max_length: int = MAX_LENGTH,
        same_length: bool = False,
        seed: int = 25,
    ) -> dict[str, Any]:
        found = mauve(
            predictions, references, *load(model, device), max_length=max_length, same_length=same_length, seed=seed
        )
        return {"mauve": found.score, "buckets": found.buckets}
