"""Coherence: the mean token log-probability of continuations given their prefixes."""

from __future__ import annotations

from typing import Any

from decoding.evals.metrics.likelihood import coherence
from decoding.evals.metrics.modules import TEXT, metric_module
from decoding.models.loading import load

CITATION = "Su et al., A Contrastive Framework for Neural Text Generation, NeurIPS 2022"


def compute(
    predictions: list[str], references: list[str], model: str, device: str | None = None, max_length: int | None = None
) -> dict[str, Any]:
    """Compute coherence under a causal model.

    Args:
        predictions: continuations, as they follow their prefixes.
        references: the prefixes.
        model: folder or hub name of the causal model.
        device: cpu, cuda, ...; by default cuda if there is one.
        max_length: cut prefix and continuation together to so many tokens.

    Returns:
        coherence: their mean; texts: that of each text, None where it is empty.
    """
    score = coherence(references, predictions, *load(model, device), max_length=max_length)
    return {"coherence": score.mean, "texts": score.texts}


Coherence = metric_module(compute, __doc__, CITATION, {"predictions": TEXT, "references": TEXT})
