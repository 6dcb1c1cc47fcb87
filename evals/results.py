"""What came out of an evaluation: figures with intervals, paired tests, the results file and the table."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoding.cli_doctor import versions
from decoding.cli_options import as_json
from decoding.errors import InputError, OptionError
from decoding.evals.configurations import Configuration
from decoding.evals.samples import Sample
from decoding.evals.statistics import CONFIDENCE, RESAMPLES, bootstrap_figure, bootstrap_means, paired_differences
from decoding.kernels.backend import choose
from decoding.loading import one_line

if TYPE_CHECKING:
    from decoding.evals.runner import Document, Task

__all__ = ["Results", "results_of", "show_results", "write_results"]

Results = dict[str, Any]
"""What ``results_<utc>.json`` holds; docs/evaluation.md describes it."""


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
    rows = {each.id: [known[each.id, configuration.hash] for configuration in configurations] for each in documents}
    reasons = {id_: next((each["skipped"] for each in row if "skipped" in each), None) for id_, row in rows.items()}
    bad = [{"document": id_, "reason": reason} for id_, reason in reasons.items() if reason is not None]
    used = [row for id_, row in rows.items() if reasons[id_] is None]
    if not used:
        raise InputError(f"{task.name}: every document was skipped; the first because of: {bad[0]['reason']}")
    names = list(used[0][0]["metrics"])
    values = [[_numbers(row[i], names) for row in used] for i in range(len(configurations))]  # (config, document, name)
    entries, comparisons = [], []
    for index, configuration in enumerate(configurations):
        intervals = dict(zip(names, map(asdict, bootstrap_means(values[index], seed=seed)), strict=True))
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
            differences = paired_differences(values[index], values[0], seed=seed)
            comparisons.append(
                {
                    "strategy": configuration.label,
                    "against": configurations[0].label,
                    "metrics": dict(zip(names, map(asdict, differences), strict=True)),
                }
            )
    model = configurations[0].settings.get("model", {})
    return {
        "task": task.name,
        "task_settings": dict(task.settings),
        "model": model,
        "dtype": model.get("dtype"),
        "versions": versions(),
        "kernel_backend": choose("auto"),
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
            "paired": "bootstrap of the difference on the same documents; McNemar's exact test where values are 0 or 1",
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
        partial = path.with_suffix(".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(as_json(results, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise OptionError(f"{path}: cannot be written ({one_line(error)}); the samples are safe") from error
    return results


def _numbers(sample: Sample, names: Sequence[str]) -> list[float]:
    metrics = sample["metrics"]
    if list(metrics) != list(names):
        raise InputError(
            f"document {sample['document']} has the metrics {', '.join(metrics)} and another {', '.join(names)}: the "
            "samples are of different versions; give another --output"
        )
    return [float(metrics[name]) for name in names]


def _corpus_metrics(task: Task, records: Sequence[Sample], seed: int) -> dict[str, dict[str, float | None]]:
    whole = task.corpus_metrics(records)
    if not task.corpus_resamples:
        return {name: {"value": value, "low": None, "high": None} for name, value in whole.items()}
    seen: dict[tuple[int, ...], Mapping[str, float]] = {}

    def figure(indices: Sequence[int], name: str) -> float:
        key = tuple(indices)  # every figure of a resample comes from one call
        if key not in seen:
            seen[key] = task.corpus_metrics([records[i] for i in indices])
        return seen[key][name]

    return {
        name: asdict(
            bootstrap_figure(
                lambda indices, name=name: figure(indices, name),  # type: ignore[misc]
                len(records),
                seed=seed,
                resamples=task.corpus_resamples,
            )
        )
        for name in whole
    }


# --- showing ---------------------------------------------------------------------------------------------------------


def show_results(out: Console, results: Results, metrics: Sequence[str], percent: bool = True) -> None:
    """One row a strategy: each metric with its interval, under it the difference from the first and whether it is real.

    Args:
        out: where to.
        results: what :func:`decoding.evals.runner.run` gave.
        metrics: which of its metrics, in order.
        percent: whether they are shares, shown in percent.
    """
    scale, digits = (100, 1) if percent else (1, 2)
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("\nstrategy")
    for name in metrics:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    paired = {each["strategy"]: each["metrics"] for each in results["comparisons"]}
    for entry in results["configurations"]:
        inside = entry["label"].removeprefix(entry["strategy"]).strip("()")
        cells = []
        for name in metrics:
            figure = entry["metrics"][name]
            cell = Text(f"{scale * figure['value']:.{digits}f}")
            if figure["low"] is not None:
                cell.append(f"\n{scale * figure['low']:.{digits}f}-{scale * figure['high']:.{digits}f}", style="dim")
            difference = paired.get(entry["label"], {}).get(name)
            if difference is not None:
                cell.append(f"\n{scale * difference['value']:+.{digits}f}{_stars(difference)}")
            cells.append(cell)
        table.add_row(Text(entry["strategy"]).append(f"\n{inside}" if inside else "", style="dim"), *cells)
    out.print(table)
    counts = results["counts"]
    out.print(
        f"{counts['evaluated']} documents"
        + (f", {counts['skipped'] + counts['left_out_of_the_data']} skipped" if results["skipped"] else "")
        + f"; under each figure its {CONFIDENCE:.0%} interval"
        + (f", then the difference from {results['configurations'][0]['strategy']}" if paired else "")
        + ("; * p < 0.05, ** p < 0.01, paired, not corrected for the number of comparisons" if paired else ""),
        style="dim",
        highlight=False,
    )
    for each in itertools.islice(results["skipped"], 5):
        out.print(f"skipped: {each['reason']}", style="dim", markup=False)


def _stars(difference: Mapping[str, Any]) -> str:
    """By McNemar's test where there is one, else by the bootstrap."""
    p = difference["p"] if difference["mcnemar_p"] is None else difference["mcnemar_p"]
    return "**" if p < 0.01 else "*" if p < 0.05 else ""
