"""distinct-n: distinct n-grams of all texts over all their n-grams, in percent."""

from __future__ import annotations

from collections.abc import Sequence

from decoding.evals.metrics.modules import TEXT, metric_module
from decoding.evals.metrics.repetition import distinct

CITATION = "Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, NAACL 2016"


def compute(
    predictions: list[str], units: str = "whitespace", orders: int | Sequence[int] = (1, 2)
) -> dict[str, float]:
    """Compute distinct-n.

    Args:
        predictions: texts.
        units: "whitespace", "characters", a sentencepiece model, or the folder of a tokenizer.
        orders: which n, one or several.

    Returns:
        distinct_1, distinct_2, ...
    """
    return {f"distinct_{n}": distinct(predictions, n, units) for n in ([orders] if isinstance(orders, int) else orders)}


DistinctN = metric_module(compute, __doc__, CITATION, {"predictions": TEXT})
