"""``decoding architectures``: which model types are decoded exactly, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from decoding.cli_doctor import versions
from decoding.cli_options import Json, as_json, console, progress
from decoding.errors import OptionError, nearest
from decoding.evals.architectures.columns import COLUMNS
from decoding.evals.architectures.results import Row, table, totals
from decoding.evals.architectures.tiny import causal_types
from decoding.evals.architectures.trial import tried_apart
from decoding.loading import one_line

__all__ = ["architectures_command"]


def architectures_command(
    types: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Model types as transformers names them; by default all.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, metavar="N", help="Time that one type is given.")] = 60,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the table to this file.")] = None,
    json: Json = False,
) -> None:
    """Build every causal language model type tiny and compare contrastive search on it with full recomputation.

    Example: decoding architectures --types llama,mamba,gemma2
    """
    every = causal_types()
    chosen = every if types is None else [name.strip() for name in types.split(",")]
    for name in chosen:
        if name not in every:
            raise OptionError(
                f"--types {name!r}: transformers maps no causal language model to it{nearest(name, every)}"
            )
    torch.set_num_threads(1)  # a process with threads may not be forked
    rows: list[Row] = []
    with progress() as bar:
        for name in bar.track(chosen, description="model types"):
            rows.append(tried_apart(name, seconds))
    if output is not None:
        try:
            output.write_text(table(rows, COLUMNS, versions()), encoding="utf-8")
        except OSError as error:
            raise OptionError(f"--output {output}: cannot be written ({one_line(error)})") from error
    if json:
        print(as_json({"versions": versions(), "totals": totals(rows), "types": [_record(row) for row in rows]}, 1))
        return
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("type", *COLUMNS, "why"):
        shown.add_column(column, overflow="fold")
    for row in rows:
        cells = [row.cells.get(column) for column in COLUMNS]
        why = row.not_tried or "; ".join(cell.reason for cell in cells if cell is not None and cell.reason)
        shown.add_row(row.model_type, *("-" if cell is None else cell.verdict for cell in cells), why)
    out = console()
    out.print(shown, markup=False)
    out.print(", ".join(f"{name}: {count}" for name, count in totals(rows).items()), markup=False)


def _record(row: Row) -> dict[str, object]:
    cells = {name: {"verdict": cell.verdict, "reason": cell.reason} for name, cell in row.cells.items()}
    return {"type": row.model_type, "not tried": row.not_tried, "cells": cells}
