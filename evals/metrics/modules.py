"""Metrics as modules of ``evaluate``: each folder here has one, which ``evaluate.load`` finds by its path, offline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import evaluate

__all__ = ["TEXT", "TEXTS", "WITH_REFERENCES", "metric_module"]

TEXT = datasets.Value("string")
TEXTS = datasets.Sequence(TEXT)
WITH_REFERENCES = ({"predictions": TEXT, "references": TEXT}, {"predictions": TEXT, "references": TEXTS})
"""For each text one reference, or several."""


def metric_module(
    compute: Callable[..., dict[str, Any]],
    description: str | None,
    citation: str,
    *features: Mapping[str, Any],
) -> type[evaluate.Metric]:
    """The class that ``evaluate.load`` looks for in a module.

    A function and not a base class, which ``evaluate.load`` would take for the metric wherever it is imported.

    Args:
        compute: a function from ``predictions``, perhaps ``references``, and settings to figures by name; its
            docstring describes them.
        description: of the metric.
        citation: its source.
        features: the types of predictions and references; several where there is a choice.
    """
    types_of: Sequence[datasets.Features] = [datasets.Features(dict(types)) for types in features]

    figures = compute

    class TextMetric(evaluate.Metric):
        _compute = staticmethod(figures)

        def compute(self, *, predictions: Any = None, references: Any = None, **settings: Any) -> Any:
            """Compute the figures; one text alone is a list of one."""
            given = {
                name: [value] if isinstance(value, str) else value
                for name, value in (("predictions", predictions), ("references", references))
                if value is not None
            }
            return super().compute(**given, **settings)

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=description or "",
                citation=citation,
                inputs_description=inspect.getdoc(figures) or "",
                features=types_of[0] if len(types_of) == 1 else list(types_of),
            )

    return TextMetric
