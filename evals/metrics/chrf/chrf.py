"""Corpus chrF through sacrebleu, 0 to 100, with its signature."""

from __future__ import annotations

from typing import Any

from decoding.evals.metrics.modules import WITH_REFERENCES, metric_module
from decoding.evals.metrics.overlap import chrf

CITATION = "Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015"


def compute(predictions: list[str], references: list[Any], word_order: int = 0) -> dict[str, Any]:
    """Compute chrF.

    Args:
        predictions: translations.
        references: for each its reference, or a list of them.
        word_order: 2 for chrF++.

    Returns:
        chrf, signature
    """
    score = chrf(predictions, references, word_order=word_order)
    return {"chrf": score.score, "signature": score.signature}


Chrf = metric_module(compute, __doc__, CITATION, *WITH_REFERENCES)
