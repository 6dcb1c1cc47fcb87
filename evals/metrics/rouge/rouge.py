"""ROUGE F-scores through rouge_score, 0 to 100, for any script."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from decoding.evals.metrics.overlap import rouge

INPUTS = """
Args:
    predictions: summaries.
    references: for each its reference, or a list of them, of which the best counts.
    units: None for rouge_score's own words (English, stemmed, a-z and 0-9 only); else "whitespace", "characters", a
        sentencepiece model, or the folder of a tokenizer.

Returns:
    rouge1, rouge2, rougeL, rougeLsum
"""

CITATION = "Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004"


class Rouge(evaluate.Metric):
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

    def _compute(self, predictions: list[str], references: list[Any], units: str | None = None) -> dict[str, float]:
        return rouge(predictions, references, units)
