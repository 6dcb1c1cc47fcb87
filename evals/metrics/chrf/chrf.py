"""Corpus chrF through sacrebleu, 0 to 100, with its signature."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from decoding.evals.metrics.overlap import chrf

INPUTS = """
Args:
    predictions: translations.
    references: for each its reference, or a list of them.
    word_order: 2 for chrF++.

Returns:
    chrf, signature
"""

CITATION = "Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015"


class Chrf(evaluate.Metric):
    """The module that ``evaluate.load`` finds in this folder."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
                datasets.Features(
                    {
                        "predictions": datasets.Value("string"),
                        "references": datasets.Sequence(datasets.Value("string")),
                    }
                ),
            ],
        )

    def _compute(self, predictions: list[str], references: list[Any], word_order: int = 0) -> dict[str, Any]:
        found = chrf(predictions, references, word_order=word_order)
        return {"chrf": found.score, "signature": found.signature}
