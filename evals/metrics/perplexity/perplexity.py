"""Perplexity of texts under any local causal model."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from decoding.evals.metrics.likelihood import perplexity
from decoding.models.loading import load

INPUTS = """
Args:
    predictions: texts.
    model: folder or hub name of the causal model that judges.
    device: cpu, cuda, ...; by default cuda if there is one.
    add_start_token: put the tokenizer's BOS in front, so that the first token is scored too.
    max_length: cut texts to so many tokens.

Returns:
    perplexity: of all tokens together; mean_perplexity: mean of the texts' own; texts: each one's own, None where it
    has no token to score.
"""

CITATION = "Jelinek et al., Perplexity: a measure of the difficulty of speech recognition tasks, 1977"


class PerplexityOfTexts(evaluate.Metric):
    """The module that ``evaluate.load`` finds in this folder."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(
        self,
        predictions: list[str],
        model: str,
        device: str | None = None,
        add_start_token: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Any]:
        found = perplexity(predictions, *load(model, device), add_start_token=add_start_token, max_length=max_length)
        return {"perplexity": found.corpus, "mean_perplexity": found.mean, "texts": found.texts}
