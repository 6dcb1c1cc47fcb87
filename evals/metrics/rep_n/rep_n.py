"""rep-2, rep-3, rep-4 and diversity of generated texts, in percent."""

from __future__ import annotations

import datasets
import evaluate

from decoding.evals.metrics.repetition import diversity, repetition

INPUTS = """
Args:
    predictions: continuations, without their prompts.
    units: "whitespace", "characters", a sentencepiece model, or the folder of a tokenizer.
    paper_exact: True for the figures that the papers publish, False to count every n-gram and round nothing.

Returns:
    rep_2, rep_3, rep_4: share of n-grams that occurred before in their text; diversity: what that leaves.
"""

CITATION = "Su et al., A Contrastive Framework for Neural Text Generation, NeurIPS 2022"


class RepN(evaluate.Metric):
    """The module that ``evaluate.load`` finds in this folder."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], units: str = "whitespace", paper_exact: bool = True) -> dict[str, float]:
        found = {f"rep_{n}": repetition(predictions, n, units, paper_exact=paper_exact) for n in (2, 3, 4)}
        return {**found, "diversity": diversity(predictions, units, paper_exact=paper_exact)}
