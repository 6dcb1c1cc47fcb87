"""self-BLEU: the mean BLEU of each text against all others, 0 to 100; high is little variety."""

from __future__ import annotations

import datasets
import evaluate

from decoding.evals.metrics.overlap import self_bleu

INPUTS = """
Args:
    predictions: at least two texts.
    units: "whitespace", "characters", a sentencepiece model, or the folder of a tokenizer.
    order: of the longest n-grams.

Returns:
    self_bleu
"""

CITATION = "Zhu et al., Texygen: A Benchmarking Platform for Text Generation Models, SIGIR 2018"


class SelfBleu(evaluate.Metric):
    """The module that ``evaluate.load`` finds in this folder."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], units: str = "whitespace", order: int = 4) -> dict[str, float]:
        return {"self_bleu": self_bleu(predictions, units, order)}
