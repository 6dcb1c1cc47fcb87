"""ROUGE F-scores through rouge_score, 0 to 100, for any script."""

from __future__ import annotations

from typing import Any

from decoding.evals.metrics.modules import WITH_REFERENCES, metric_module
from decoding.evals.metrics.overlap import rouge

CITATION = "Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004"


def compute(predictions: list[str], references: list[Any], units: str | None = None) -> dict[str, float]:
    """Compute ROUGE.

    Args:
        predictions: summaries.
        references: for each its reference, or a list of them, of which the best counts.
        units: None for rouge_score's own words (English, stemmed, a-z and 0-9 only); else "whitespace", "characters",
            a sentencepiece model, or the folder of a tokenizer.

    Returns:
        rouge1, rouge2, rougeL, rougeLsum
    """
    return rouge(predictions, references, units)


Rouge = metric_module(compute, __doc__, CITATION, *WITH_REFERENCES)
