"""self-BLEU: the mean BLEU of each text against all others, 0 to 100; high is little variety."""

from __future__ import annotations

from decoding.evals.metrics.modules import TEXT, metric_module
from decoding.evals.metrics.overlap import self_bleu

CITATION = "Zhu et al., Texygen: A Benchmarking Platform for Text Generation Models, SIGIR 2018"


def compute(predictions: list[str], units: str = "whitespace", order: int = 4) -> dict[str, float]:
    """Compute self-BLEU.

    Args:
        predictions: at least two texts.
        units: "whitespace", "characters", a sentencepiece model, or the folder of a tokenizer.
        order: of the longest n-grams.

    Returns:
        self_bleu
    """
    return {"self_bleu": self_bleu(predictions, units, order)}


SelfBleu = metric_module(compute, __doc__, CITATION, {"predictions": TEXT})
