"""rep-2, rep-3, rep-4 and diversity of generated texts, in percent."""

from __future__ import annotations

from decoding.evals.metrics.modules import TEXT, metric_module
from decoding.evals.metrics.repetition import diversity, repetition

CITATION = "Su et al., A Contrastive Framework for Neural Text Generation, NeurIPS 2022"


def compute(predictions: list[str], units: str = "whitespace", paper_exact: bool = True) -> dict[str, float]:
    """Compute repetition and diversity.

    Args:
        predictions: continuations, without their prompts.
        units: "whitespace", "characters", a sentencepiece model, or the folder of a tokenizer.
        paper_exact: True for the figures that the papers publish, False to count every n-gram and round nothing.

    Returns:
        rep_2, rep_3, rep_4: share of n-grams that occurred before in their text; diversity: the share that is left.
    """
    shares = {f"rep_{n}": repetition(predictions, n, units, paper_exact=paper_exact) for n in (2, 3, 4)}
    return {**shares, "diversity": diversity(predictions, units, paper_exact=paper_exact)}


RepN = metric_module(compute, __doc__, CITATION, {"predictions": TEXT})
