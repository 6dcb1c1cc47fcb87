"""Results of evaluations: figures with intervals, paired tests, the results file and the table."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
from decoding.strategies.registry import STRATEGIES
from decoding.versions import versions

if TYPE_CHECKING:
    from decoding.evals.engine.task import Document, Task

__all__ = ["Results", "corrected", "results_in", "results_of", "show_results", "write_results"]

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
    p_values = holm([_p_of(results["comparisons"][row]["metrics"][name]) for row, name in places])
    comparisons = [{**entry, "metrics": dict(entry["metrics"])} for entry in results["comparisons"]]
    for (row, name), p in zip(places, p_values, strict=True):
        comparisons[row]["metrics"][name] = {**comparisons[row]["metrics"][name], "p_holm": p}
    return {**results, "comparisons": comparisons}


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


# --- showing ---------------------------------------------------------------------------------------------------------

WIDTH = 10  # of a column, which "25.4-100.0" fills


def show_results(out: Console, results: Results, metrics: Sequence[str], percent: bool = True) -> None:
    """Print each strategy's metrics, with intervals and differences from the first strategy.

    Args:
        out: the console.
        results: of :func:`decoding.evals.engine.runner.run`, perhaps :func:`corrected`.
        metrics: those of its metrics that are shown, in order.
        percent: show shares in percent.
    """
    scale, digits = (100, 1) if percent else (1, 2)
    paired = {entry["strategy"]: entry["metrics"] for entry in results["comparisons"]}
    first, counts = results["configurations"][0], results["counts"]
    width = max(WIDTH - 1, *map(len, metrics))
    out.print(_row("", metrics, width, "bold"))
    for entry in results["configurations"]:
        figures = [entry["metrics"][name] for name in metrics]
        out.print(Text(_shown(entry), style="cyan"), soft_wrap=False)
        out.print(_row("", [f"{scale * figure['value']:.{digits}f}" for figure in figures], width))
        if counts["evaluated"] > 1:
            ends = [
                ""
                if figure["low"] is None
                else f"{scale * figure['low']:.{digits}f}-{scale * figure['high']:.{digits}f}"
                for figure in figures
            ]
            out.print(_row(f"{CONFIDENCE:.0%}", ends, width, "dim"))
        if entry is not first:
            gains = [paired[entry["label"]].get(name) for name in metrics]
            cells = [f"{scale * gain['value']:+.{digits}f}{_stars(gain):2}" if gain else "" for gain in gains]
            out.print(_row(f"against {first['strategy']}", cells, width))
    left_out = counts["skipped"] + counts["left_out_of_the_data"]
    note = f"{counts['evaluated']} document" + ("s" if counts["evaluated"] != 1 else "")
    note += f", {left_out} more left out" if left_out else ""
    tests = [gains[name] for gains in paired.values() for name in metrics if name in gains]
    if tests:
        together = f"Holm's correction for {len(tests)}" if "p_holm" in tests[0] else "one comparison at a time"
        note += f"; * p < 0.05, ** p < 0.01: paired, {together}"
    out.print(Text(note, style="dim"))
    for skipped in itertools.islice(results["skipped"], SKIPPED_SHOWN):
        out.print(Text(f"left out: {skipped['reason']}", style="dim"))


SKIPPED_SHOWN = 5


def _row(name: str, cells: Sequence[str], width: int, style: str = "") -> Table:
    """One line of figures; the columns are the same in every line."""
    row = Table.grid(padding=(0, 1))
    row.add_column(min_width=16, max_width=16, overflow="ellipsis", no_wrap=True)
    for _ in cells:
        row.add_column(min_width=width, justify="right", no_wrap=True)
    row.add_row(*(Text(cell, style=style) for cell in (name, *cells)))
    return row


def _shown(entry: Mapping[str, Any]) -> str:
    """A strategy and those of its parameters that are not at their defaults."""
    defaults = {field.name: field.default for field in fields(STRATEGIES[entry["strategy"]])}
    changed = {name: value for name, value in entry["parameters"].items() if value != defaults.get(name)}
    inside = ", ".join(f"{name}={' '.join(str(value).split())}" for name, value in changed.items())
    return f"{entry['strategy']}({inside})" if inside else entry["strategy"]


def _p_of(difference: Mapping[str, Any]) -> float:
    """The p-value of a comparison: of McNemar's test where there is one."""
    return float(difference["p"] if difference["mcnemar_p"] is None else difference["mcnemar_p"])


def _stars(difference: Mapping[str, Any]) -> str:
    p = difference.get("p_holm", _p_of(difference))
    return "**" if p < 0.01 else "*" if p < 0.05 else ""
