"""distinct-n: distinct n-grams of all texts over all their n-grams, in percent."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from decoding.evals.metrics.repetition import distinct

INPUTS = """
Args:
    predictions: texts.
    units: "whitespace", "characters", a sentencepiece model, or the folder of a tokenizer.
    orders: which n.

Returns:
    distinct_1, distinct_2, ...
"""

CITATION = "Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, NAACL 2016"


class DistinctN(evaluate.Metric):
    """The module that ``evaluate.load`` finds in this folder."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(
        self, predictions: list[str], units: str = "whitespace", orders: Sequence[int] = (1, 2)
    ) -> dict[str, float]:
        return {f"distinct_{n}": distinct(predictions, n, units) for n in orders}
