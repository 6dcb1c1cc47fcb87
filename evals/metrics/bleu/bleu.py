"""Corpus BLEU through sacrebleu, 0 to 100, with its signature."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from decoding.evals.metrics.overlap import bleu

INPUTS = """
Args:
    predictions: translations.
    references: for each its reference, or a list of them.
    tokenize: sacrebleu's tokenizer: "13a", "zh", "char", "intl", "none", ...
    lowercase: ignore case.

Returns:
    bleu, signature
"""

CITATION = "Papineni et al., ACL 2002; Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018"


class Bleu(evaluate.Metric):
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

    def _compute(
        self, predictions: list[str], references: list[Any], tokenize: str = "13a", lowercase: bool = False
    ) -> dict[str, Any]:
        found = bleu(predictions, references, tokenize=tokenize, lowercase=lowercase)
        return {"bleu": found.score, "signature": found.signature}
