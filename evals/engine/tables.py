"""The table of an evaluation's results."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoding.evals.engine.results import Results, p_of
from decoding.evals.engine.statistics import CONFIDENCE
from decoding.strategies.registry import STRATEGIES

__all__ = ["shell_word", "show_results", "show_tuning"]

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


def show_tuning(out: Console, tuning: Mapping[str, Any]) -> None:
    """Print what ``decoding tune`` chose.

    Args:
        out: the console.
        tuning: of the results; see :func:`decoding.evals.engine.tuning.tune`.
    """
    bounds = "".join(f", at least {value:.4g} {name}" for name, value in tuning["at_least"].items())
    many = f"{tuning['evaluated']} document" + ("s" if tuning["evaluated"] != 1 else "")
    out.print(
        Text(f"chosen on {many} by {', then '.join(tuning['by'])}{bounds}; the results are of others", style="bold")
    )
    for strategy in tuning["strategies"]:
        tried = {entry["strategy"]: entry["metrics"] for entry in strategy["tried"]}
        best = tried[strategy["chosen"]]
        figures = ", ".join(f"{name} {best[name]:.4g}" for name in dict.fromkeys([*tuning["by"], *tuning["at_least"]]))
        out.print(Text(f"--strategy {shell_word(strategy['chosen'])}", style="cyan"), soft_wrap=True)
        out.print(Text(f"  of {len(tried)}: {figures}", style="dim"))
    out.print()


def shell_word(text: str) -> str:
    """The text as a word of a shell's command line, on one line."""
    if "\n" not in text:
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"


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
