"""``decoding metrics``: figures of texts that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.options import Json, Output, Placement, complete_model, expanded
from decoding.cli.output import as_json, console, progress, writable, write_files
from decoding.errors import OptionError, nearest

__all__ = ["METRICS", "metrics_command"]

METRICS = ("repetition", "distinct", "self-bleu", "coherence", "perplexity", "mauve", "bleu", "chrf", "rouge")


def _known_metrics(given: list[str] | None) -> list[str] | None:
    for name in given or ():
        if name not in METRICS:
            raise OptionError(f"--metric {name!r}{nearest(name, METRICS)}")
    return given


@expanded
def metrics_command(
    *,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Texts: JSON lines, JSON, CSV or parquet; or .txt, one text a line."),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            callback=_known_metrics,
            help=f"One of {', '.join(METRICS)}; repeatable; by default repetition.",
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Field that holds the text, by default output; repeatable, a row each."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="A row for each value of this field, such as strategy.")
    ] = None,
    prefix: Annotated[
        str, typer.Option(metavar="NAME", help="Field that holds the prompt that the text continues.")
    ] = "prefix_text",
    reference: Annotated[
        str, typer.Option(metavar="NAME", help="Field that holds a text by people.")
    ] = "reference_text",
    units: Annotated[
        str,
        typer.Option(metavar="NAME", help="whitespace, characters, a sentencepiece model, or a tokenizer's folder."),
    ] = "whitespace",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", autocompletion=complete_model, help="The model for coherence, perplexity and mauve."
        ),
    ] = None,
    placement: Placement,
    json: Json = False,
    output: Output = None,
) -> None:
    """Measure texts: how much they repeat, how coherent they are, what they have in common with references.

    Example: decoding metrics greedy.jsonl contrastive.jsonl --field output --field reference_text
    """
    from rich.table import Table

    from decoding.evals.metrics.table import METRICS, Judge, Settings, texts_of
    from decoding.evals.metrics.units import splitter

    names = metric or ["repetition"]
    settings = Settings(splitter(units), units == "whitespace", Judge(model, placement))
    rows = [row for file in files for row in texts_of(file, field or ["output"], by, prefix, reference, settings)]
    writable(output)
    figures: list[dict[str, float]] = []
    with progress() as bar:
        task = bar.add_task("measuring", total=len(rows) * len(names))
        for row in rows:
            figures.append({})
            for name in names:
                figures[-1] |= METRICS[name](row)
                bar.advance(task)
    records = [
        {"name": row.name, "texts": len(row.texts), "units": units, "metrics": values}
        for row, values in zip(rows, figures, strict=True)
    ]
    write_files(output, {"metrics.json": as_json(records, indent=2) + "\n"})
    if json:
        print(as_json(records, indent=2))
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("\ntexts", overflow="fold")
    for column in figures[0]:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for row, values in zip(rows, figures, strict=True):
        table.add_row(row.name, *(f"{value:.2f}" for value in values.values()))
    console().print(table)
