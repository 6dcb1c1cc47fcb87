"""Results of evaluations: figures with intervals, paired tests, and the results file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decoding.cli.output import as_json
from decoding.errors import InputError, OptionError, one_line
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.samples import Sample
from decoding.evals.engine.statistics import (
    CONFIDENCE,
    EXACT,
    RESAMPLES,
    Difference,
    Interval,
    bootstrap_figure,
    bootstrap_means,
    holm,
    paired_differences,
)
from decoding.files import write_whole
from decoding.kernels.backend import choose
from decoding.versions import versions

if TYPE_CHECKING:
    from decoding.evals.engine.task import Document, Task

__all__ = ["Results", "corrected", "p_of", "results_in", "results_of", "write_results"]

Results = dict[str, Any]
"""The content of ``results_<utc>.json``; docs/evaluation.md describes it."""


def results_of(
    task: Task,
    documents: Sequence[Document],
    configurations: Sequence[Configuration],
    known: Mapping[tuple[str, str], Sample],
    *,
    limit: int | None,
    seed: int,
    extra: Mapping[str, Any],
) -> Results:
    """Figures of every configuration on the documents that all of them could evaluate.

    Raises:
        InputError: no document is left, or records of one task have different metrics.
    """
    rows = {
        document.id: [known[document.id, configuration.hash] for configuration in configurations]
        for document in documents
    }
    reasons = {
        id_: next((sample["skipped"] for sample in row if "skipped" in sample), None) for id_, row in rows.items()
    }
    bad = [{"document": id_, "reason": reason} for id_, reason in reasons.items() if reason is not None]
    used = [row for id_, row in rows.items() if reasons[id_] is None]
    if not used:
        raise InputError(f"{task.name}: every document was skipped; the first one: {bad[0]['reason']}")
    names = list(used[0][0]["metrics"])
    values = [[_numbers(row[i], names) for row in used] for i in range(len(configurations))]  # (config, document, name)
    table = np.array(values)  # (configurations, documents, metrics)
    # All columns in one call: the same resamples for every figure.
    means = iter(bootstrap_means(np.concatenate(list(table), axis=1), seed=seed))
    others = np.concatenate([*table[1:], table[0][:, :0]], axis=1)
    differences = iter(paired_differences(others, np.tile(table[0], len(table) - 1), seed=seed))
    entries, comparisons = [], []
    for index, configuration in enumerate(configurations):
        intervals = {name: _figure(next(means), len(used)) for name in names}
        records = [row[index] for row in used]
        entries.append(
            {
                "label": configuration.label,
                "strategy": configuration.settings["strategy"],
                "parameters": configuration.settings["parameters"],
                "configuration": configuration.hash,
                "settings": configuration.settings,
                "metrics": {**intervals, **_corpus_metrics(task, records, seed)},
            }
        )
        if index > 0:
            comparisons.append(
                {
                    "strategy": configuration.label,
                    "against": configurations[0].label,
                    "metrics": {name: _figure(next(differences), len(used)) for name in names},
                }
            )
    model = configurations[0].settings.get("model", {})
    device = configurations[0].settings.get("device", "cpu")
    return {
        "task": task.name,
        "task_settings": dict(task.settings),
        "model": model,
        "dtype": model.get("dtype"),
        "versions": versions(),
        "device": device,
        "kernel_backend": choose("auto", device),
        "limit": limit,
        "seed": seed,
        "counts": {
            "documents": len(documents),
            "evaluated": len(used),
            "skipped": len(bad),
            "left_out_of_the_data": len(task.skipped),
        },
        "skipped": [*bad, *({"document": None, "reason": reason} for reason in task.skipped)],
        "statistics": {
            "interval": f"{CONFIDENCE:.0%} percentile bootstrap over documents",
            "resamples": RESAMPLES,
            "paired": f"sign-flip test of the difference on the same documents, exact where at most {EXACT} differ; "
            "McNemar's exact test where values are 0 or 1",
        },
        "chance": dict(task.chance),
        "configurations": entries,
        "comparisons": comparisons,
        **extra,
    }


def write_results(results: Results, output: Path | None, began: float) -> Results:
    """Add times and, in a folder, write ``results_<utc>.json``.

    Raises:
        OptionError: it cannot be written.
    """
    now = datetime.now(UTC)
    results = {**results, "times": {"utc": now.isoformat(), "seconds": round(time.time() - began, 3)}}
    if output is not None:
        path = output / f"results_{now:%Y%m%dT%H%M%S.%f}Z.json"
        try:
            write_whole(path, as_json(results, indent=2) + "\n")
        except OSError as error:
            raise OptionError(f"{path}: cannot be written ({one_line(error)}); the samples are safe") from error
    return results


def results_in(
    folder: Path, task: str, configurations: Sequence[Configuration], *, limit: int | None, seed: int
) -> Results | None:
    """The newest results of these configurations of a task in a folder, written by any process; None for none."""
    wanted = [configuration.hash for configuration in configurations]
    for path in sorted(folder.glob("results_*.json"), reverse=True):
        try:
            results: Results = json.loads(path.read_text(encoding="utf-8"))
            hashes = [entry["configuration"] for entry in results["configurations"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # some other file of this name
        if (results.get("task"), hashes, results.get("limit"), results.get("seed")) == (task, wanted, limit, seed):
            return results
    return None


def corrected(results: Results, metrics: Sequence[str]) -> Results:
    """The results with ``p_holm``, each p-value corrected for all of a table (Holm's method).

    Args:
        results: of an evaluation.
        metrics: those that the table shows.
    """
    places = [
        (row, name) for row, entry in enumerate(results["comparisons"]) for name in metrics if name in entry["metrics"]
    ]
    p_values = holm([p_of(results["comparisons"][row]["metrics"][name]) for row, name in places])
    comparisons = [{**entry, "metrics": dict(entry["metrics"])} for entry in results["comparisons"]]
    for (row, name), p in zip(places, p_values, strict=True):
        comparisons[row]["metrics"][name] = {**comparisons[row]["metrics"][name], "p_holm": p}
    return {**results, "comparisons": comparisons}


def p_of(difference: Mapping[str, Any]) -> float:
    """The p-value of a comparison: of McNemar's test where there is one."""
    return float(difference["p"] if difference["mcnemar_p"] is None else difference["mcnemar_p"])


def _figure(figure: Interval | Difference, documents: int) -> dict[str, Any]:
    """A figure as in the results file. One document has no spread, and so no interval."""
    return asdict(figure) if documents > 1 else {**asdict(figure), "low": None, "high": None}


def _numbers(sample: Sample, names: Sequence[str]) -> list[float]:
    metrics = sample["metrics"]
    if list(metrics) != list(names):
        raise InputError(
            f"document {sample['document']} has the metrics {', '.join(metrics)} and another {', '.join(names)}: the "
            "samples are of different versions; give another --output"
        )
    return [float(metrics[name]) for name in names]


def _corpus_metrics(task: Task, records: Sequence[Sample], seed: int) -> dict[str, dict[str, float | None]]:
    whole, once = task.corpus_metrics(records), dict(task.corpus_metrics_once(records))
    if not task.corpus_resamples:
        whole, once = {}, {**whole, **once}
    seen: dict[tuple[int, ...], Mapping[str, float]] = {}

    def figure(indices: Sequence[int], name: str) -> float:
        key = tuple(indices)  # every figure of a resample comes from one call
        if key not in seen:
            seen[key] = task.corpus_metrics([records[i] for i in indices])
        return seen[key][name]

    resampled = {
        name: _figure(
            bootstrap_figure(
                lambda indices, name=name: figure(indices, name),  # type: ignore[misc]
                len(records),
                seed=seed,
                resamples=task.corpus_resamples,
            ),
            len(records),
        )
        for name in whole
    }
    return {**resampled, **{name: {"value": value, "low": None, "high": None} for name, value in once.items()}}
