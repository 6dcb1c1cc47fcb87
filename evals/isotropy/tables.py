"""Results of an analysis as tables, and as the content of the results file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from decoding.evals.isotropy.results import Isotropy, Layer
from decoding.evals.isotropy.verdicts import verdict
from decoding.versions import versions

__all__ = ["record", "show"]


def record(results: list[Isotropy], paper: bool = False) -> dict[str, Any]:
    """Return the content of the results file."""
    return {
        "task": "isotropy",
        "mode": "paper" if paper else "full",
        "versions": versions(),
        "results": [{**result.as_dict(), "verdict": asdict(verdict(result))} for result in results],
    }


COLUMNS = (
    "layer", "within\ntext", "within\ncentred", "across\ntexts", "Iso-\nScore", "Iso-\nScore*", "ln min/\nmax Z",
    "eff.\ndims", "1st\nPC %", "TwoNN", "top dim\n(share)",
)  # fmt: skip


def show(out: Console, results: list[Isotropy]) -> None:
    """Print a table for each model and data set, their comparison where there are several, and the verdicts."""
    for result in results:
        _show_layers(out, result)
    if len(results) > 1:
        _show_comparison(out, results)


def _show_layers(out: Console, result: Isotropy) -> None:
    counts = result.counts
    out.print(Text(f"{result.model} on {result.data}", style="bold"), end="")
    out.print(
        f": {counts.texts} texts, {counts.tokens} tokens, {counts.skipped} skipped, {counts.cut} cut", markup=False
    )
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for layer in result.layers:
        table.add_row(*_cells(layer))
    out.print(table)
    last = result.last
    if last is not None and last.isotropy is not None:
        value = last.isotropy
        out.print(f"isotropy of the last layer: {value.value:.3f} (95% interval {value.low:.3f} to {value.high:.3f})")
    out.print(Padding(Text(verdict(result).text), (0, 0, 1, 2)))


def _show_comparison(out: Console, results: list[Isotropy]) -> None:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in ("model", "data", "isotropy", "headroom", "α", "k", "certainty"):
        table.add_column(column, justify="right" if column in ("isotropy", "α", "k") else "left")
    for result in results:
        judged = verdict(result)
        isotropy = result.last.isotropy if result.last is not None else None
        figure = "-" if isotropy is None else f"{isotropy.value:.2f}"
        table.add_row(
            Text(result.model, overflow="fold"), Text(result.data), figure, judged.headroom, str(judged.penalty_alpha),
            str(judged.top_k), judged.certainty,
        )  # fmt: skip
    out.print(table)


def _cells(layer: Layer) -> list[str]:
    within, across, top = layer.within, layer.across, layer.rogue[0] if layer.rogue else None
    return [
        str(layer.layer),
        *(_number(value) for value in (within.raw, within.centred, across.raw, layer.isoscore, layer.isoscore_star)),
        f"{layer.log_partition_score:.1f}",
        f"{layer.participation_ratio:.1f}",
        f"{100 * layer.first_component:.1f}",
        "-" if layer.intrinsic_dimension is None else f"{layer.intrinsic_dimension.value:.1f}",
        "-" if top is None else f"{top.dimension} ({top.share:.0%})",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
