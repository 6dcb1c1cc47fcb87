"""Tuning: the values of strategies are chosen on some documents, and the results are those of the others."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decoding.errors import DecodingWarning, InputError, OptionError, nearest
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.results import Results
from decoding.evals.engine.runner import run
from decoding.evals.engine.task import Document, Record, Task

__all__ = ["Criterion", "Part", "Tuned", "split", "tune"]


@dataclass(frozen=True)
class Criterion:
    """The figures that choose between the candidates of a strategy.

    Attributes:
        by: metrics; the candidate with the highest value of the first one is chosen, of equals the one with the highest
            value of the second, and so on, of equals in all of them the first candidate.
        at_least: by metric the value that a candidate must reach to be chosen.
    """

    by: Sequence[str]
    at_least: Mapping[str, float] = field(default_factory=dict)

    def best(self, figures: Sequence[Mapping[str, float]]) -> int:
        """The index of the chosen candidate. Where none reaches ``at_least``, that which misses it by the least."""
        reaching = [i for i, values in enumerate(figures) if not self.missed(values)]
        if reaching:
            return max(reaching, key=lambda i: [figures[i][name] for name in self.by])  # the first of equals
        return min(range(len(figures)), key=lambda i: sum(self.missed(figures[i]).values()))

    def missed(self, values: Mapping[str, float]) -> dict[str, float]:
        """By how much a candidate misses ``at_least``, for the metrics in which it does."""
        return {name: bound - values[name] for name, bound in self.at_least.items() if values[name] < bound}


class Part(Task):
    """Some documents of a task, as a task with a name of its own.

    Args:
        whole: the task.
        documents: some of its documents.
        part: what they are for; the task's name is ``<name>_<part>``.
    """

    def __init__(self, whole: Task, documents: Sequence[Document], part: str) -> None:
        self.whole, self._documents = whole, documents
        self.name = f"{whole.name}_{part}"
        self.model, self.group_size, self.chance = whole.model, whole.group_size, whole.chance
        self.settings = {**whole.settings, "part": part}
        self.skipped, self.corpus_resamples = whole.skipped, whole.corpus_resamples

    def documents(self) -> Sequence[Document]:
        """The documents of the part."""
        return self._documents

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """The records of the whole task."""
        return self.whole.evaluate(document, configurations)

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """The records of the whole task."""
        return self.whole.evaluate_group(documents, configurations)

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """The figures of the whole task."""
        return self.whole.corpus_metrics(records)

    def corpus_metrics_once(self, records: Sequence[Record]) -> Mapping[str, float]:
        """The figures of the whole task."""
        return self.whole.corpus_metrics_once(records)


def split(
    task: Task, documents: Sequence[Document], validation: int, seed: int
) -> tuple[list[Document], list[Document]]:
    """Documents to choose on, and the others, both in their order.

    Drawn at random from ``seed``, the ids and nothing else; or those of ``task.validation_ids``, where the data have a
    split of their own.

    Args:
        task: whose documents they are.
        documents: all of them.
        validation: number of documents to choose on.
        seed: of the draw.

    Raises:
        OptionError: no document would be left for the report.
    """
    if task.validation_ids:
        chosen: Collection[str] = set(task.validation_ids)
        validation = sum(document.id in chosen for document in documents)
    else:
        ids = sorted(document.id for document in documents)
        chosen = set(random.Random(f"tuning {seed}").sample(ids, min(validation, len(ids))))
    first, others = ([item for item in documents if (item.id in chosen) is wanted] for wanted in (True, False))
    if not first or not others:
        raise OptionError(
            f"--validation {validation}: {task.name} has {len(documents)} documents; some must be left for each of the "
            "choice and the report"
        )
    return first, others


@dataclass(frozen=True)
class Tuned:
    """The end of :func:`tune`.

    Attributes:
        results: of the chosen configurations; None on a rank that did not end last.
        name: of the task of the results.
        chosen: one configuration for each strategy.
    """

    results: Results | None
    name: str
    chosen: Sequence[Configuration]


def tune(
    task: Task,
    candidates: Sequence[tuple[str, Sequence[Configuration]]],
    validation: int,
    *,
    by: Sequence[str] | None = None,
    at_least: Mapping[str, float] | None = None,
    output: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Tuned:
    """Choose a candidate of each strategy on some documents, and evaluate the chosen ones on the others.

    Args:
        task: documents and their evaluation.
        candidates: for each strategy, as it was given, the configurations to choose from. The chosen ones are compared
            with that of the first strategy.
        validation: number of documents to choose on; see :func:`split`.
        by: see :class:`Criterion`; None is the task's own ``criterion`` and, where ``at_least`` is None too, its
            ``bounds``.
        at_least: see :class:`Criterion`.
        output: see :func:`decoding.evals.engine.runner.run`; what was evaluated before is read from there.
        limit: split the first so many documents only; of data with a split of their own, so many of either part.
        seed: of the split and of the bootstrap.
        skip_bad: see there.
        extra: see there.

    Returns:
        The results of the chosen ones. They have an entry ``tuning``: the documents of the choice, every candidate with
        its figures there, and the chosen one.

    Raises:
        InputError: a document that cannot be evaluated, or none at all.
        OptionError: a metric that the task does not have, or see :func:`split` and
            :func:`decoding.evals.engine.runner.run`.
    """
    if task.validation_ids:
        first, others = (documents[:limit] for documents in split(task, task.documents(), validation, seed))
    else:
        first, others = split(task, task.documents()[:limit], validation, seed)
    every = [configuration for _, configurations in candidates for configuration in configurations]
    criterion = _criterion(task, by, at_least, first, every[0])
    where: dict[str, Any] = {"output": output, "limit": limit, "seed": seed, "skip_bad": skip_bad}
    tried = run(Part(task, first, "validation"), every, everywhere=True, **where)
    assert tried is not None
    entries = iter(tried["configurations"])
    chosen, strategies = [], []
    for given, configurations in candidates:
        figures = [{name: figure["value"] for name, figure in next(entries)["metrics"].items()} for _ in configurations]
        best = criterion.best(figures)
        missed = criterion.missed(figures[best])
        if missed:
            bounds = ", ".join(f"{name} of {criterion.at_least[name]:.4g}" for name in missed)
            warnings.warn(
                f"{given}: no candidate has the {bounds}; the nearest is taken", DecodingWarning, stacklevel=2
            )
        chosen.append(configurations[best])
        tried_here = [
            {"strategy": configuration.spec.spec, "metrics": values}
            for configuration, values in zip(configurations, figures, strict=True)
        ]
        strategies.append({"given": given, "chosen": configurations[best].spec.spec, "tried": tried_here})
    tuning = {
        "documents": [document.id for document in first],
        "evaluated": tried["counts"]["evaluated"],
        "by": list(criterion.by),
        "at_least": dict(criterion.at_least),
        "strategies": strategies,
    }
    part = Part(task, others, "report")
    return Tuned(run(part, chosen, extra={**(extra or {}), "tuning": tuning}, **where), part.name, chosen)


def _criterion(
    task: Task,
    by: Sequence[str] | None,
    at_least: Mapping[str, float] | None,
    documents: Sequence[Document],
    configuration: Configuration,
) -> Criterion:
    """The criterion that was asked for, or else the task's.

    Raises:
        OptionError: a metric that the task does not have, or no metric at all.
    """
    if by is None and at_least is None:
        at_least = task.bounds(documents)
    criterion = Criterion(by or task.criterion or task.figures[:1], at_least or {})
    if not criterion.by:
        raise OptionError(f"{task.name}: has no metric to choose by unless it is told: give --by METRIC")
    asked = [*(by or ()), *criterion.at_least]
    if asked:  # before hours are spent: a document has the names
        with contextlib.suppress(InputError):  # which is said where the document has its turn
            (record,) = task.evaluate_group(documents[:1], [configuration])[0]
            known = dict.fromkeys([*task.figures, *record["metrics"], *task.corpus_metrics([record])])
            unknown = next((name for name in asked if name not in known), None)
            if unknown is not None:
                raise OptionError(f"{task.name} has no metric {unknown!r}{nearest(unknown, known)}")
    return criterion
