"""Corpus BLEU through sacrebleu, 0 to 100, with its signature."""

from __future__ import annotations

from typing import Any

from decoding.evals.metrics.modules import WITH_REFERENCES, metric_module
from decoding.evals.metrics.overlap import bleu

CITATION = "Papineni et al., ACL 2002; Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018"


def compute(
    predictions: list[str], references: list[Any], tokenize: str = "13a", lowercase: bool = False
) -> dict[str, Any]:
    """Compute BLEU.

    Args:
        predictions: translations.
        references: for each its reference, or a list of them.
        tokenize: sacrebleu's tokenizer: "13a", "zh", "char", "intl", "none", ...
        lowercase: ignore case.

    Returns:
        bleu, signature
    """
    score = bleu(predictions, references, tokenize=tokenize, lowercase=lowercase)
    return {"bleu": score.score, "signature": score.signature}


Bleu = metric_module(compute, __doc__, CITATION, *WITH_REFERENCES)
