"""Perplexity of texts under any local causal model."""

from __future__ import annotations

from typing import Any

from decoding.evals.metrics.likelihood import perplexity
from decoding.evals.metrics.modules import TEXT, metric_module
from decoding.models.loading import load

CITATION = "Jelinek et al., Perplexity: a measure of the difficulty of speech recognition tasks, 1977"


def compute(
    predictions: list[str],
    model: str,
    device: str | None = None,
    add_start_token: bool = True,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Compute perplexity under a causal model.

    Args:
        predictions: texts.
        model: folder or hub name of the causal model.
        device: cpu, cuda, ...; by default cuda if there is one.
        add_start_token: put the tokenizer's BOS in front, so that the first token is scored too.
        max_length: cut texts to so many tokens.

    Returns:
        perplexity: of all tokens together; mean_perplexity: mean over the texts; texts: that of each text, None where
        it has no token to score.
    """
    score = perplexity(predictions, *load(model, device), add_start_token=add_start_token, max_length=max_length)
    return {"perplexity": score.corpus, "mean_perplexity": score.mean, "texts": score.texts}


Perplexity = metric_module(compute, __doc__, CITATION, {"predictions": TEXT})
