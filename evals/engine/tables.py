"""The table of an evaluation's results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoding.evals.engine.results import Results, p_of
from decoding.evals.engine.statistics import CONFIDENCE
from decoding.strategies.registry import STRATEGIES

__all__ = ["show_results"]

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
    chance = [results["chance"].get(name) for name in metrics]
    if any(value is not None for value in chance):
        cells = ["" if value is None else f"{scale * value:.{digits}f}" for value in chance]
        out.print(_row("chance", cells, width, "dim"))
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


def _stars(difference: Mapping[str, Any]) -> str:
    p = difference.get("p_holm", p_of(difference))
    return "**" if p < 0.01 else "*" if p < 0.05 else ""
