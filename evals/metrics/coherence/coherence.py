"""Coherence: the mean token log-probability of continuations given their prefixes."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from decoding.evals.metrics.likelihood import coherence
from decoding.models.loading import load

INPUTS = """
Args:
    predictions: continuations, as they follow their prefixes.
    references: the prefixes.
    model: folder or hub name of the causal model that judges.
    device: cpu, cuda, ...; by default cuda if there is one.
    max_length: cut prefix and continuation together to so many tokens.

Returns:
    coherence: their mean; texts: each one's own, None where it is empty.
"""

CITATION = "Su et al., A Contrastive Framework for Neural Text Generation, NeurIPS 2022"


class CoherenceOfTexts(evaluate.Metric):
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
        max_length: int | None = None,
    ) -> dict[str, Any]:
        found = coherence(references, predictions, *load(model, device), max_length=max_length)
        return {"coherence": found.mean, "texts": found.texts}
