"""``python -m decoding.tools.architectures``: which model types are decoded exactly, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from decoding.cli.options import Json
from decoding.cli.output import as_json, console, progress
from decoding.errors import OptionError, nearest, one_line
from decoding.tools.architectures.columns import COLUMNS
from decoding.tools.architectures.other_inputs import is_encoder_decoder, other_input_types
from decoding.tools.architectures.other_inputs_search import CACHE_COLUMNS, OTHER_INPUTS_COLUMNS
from decoding.tools.architectures.results import WAYS, Row, section, table, totals
from decoding.tools.architectures.tiny import causal_types
from decoding.tools.architectures.trial import try_cache, try_in_process, try_other_inputs
from decoding.versions import versions

__all__ = ["BESIDE", "CACHES", "ENCODER_DECODERS", "architectures_command", "counted"]


def architectures_command(
    types: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Model types as transformers names them; by default all.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, metavar="N", help="Time that one type is given.")] = 60,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the table to this file.")] = None,
    json: Json = False,
) -> None:
    """Build every causal language model type tiny and compare contrastive search on it with full recomputation.

    Example: python -m decoding.tools.architectures --types llama,mamba,gemma2
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
            rows.append(try_in_process(name, seconds))
    further = _further(seconds) if types is None and output is not None else []
    if output is not None:
        try:
            page = table(rows, COLUMNS, versions()) + "".join(section(*part) for part in further)
            output.write_text(page, encoding="utf-8")
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


def _further(seconds: float) -> list[tuple[str, str, list[Row], tuple[str, ...]]]:
    """The page's other tables: heading, paragraph, rows, columns."""
    encoding: list[Row] = []
    beside: list[Row] = []
    with progress() as bar:
        for name in bar.track(list(other_input_types()), description="models of more than text"):
            (encoding if is_encoder_decoder(name) else beside).append(try_in_process(name, seconds, try_other_inputs))
        caches = [try_in_process(backend, seconds, try_cache) for backend in ("quanto", "hqq", "fp8")]
    return [
        ("Encoder-decoders", ENCODER_DECODERS + counted(encoding), encoding, OTHER_INPUTS_COLUMNS[:2]),
        ("Models of images and sound", BESIDE + counted(beside), beside, OTHER_INPUTS_COLUMNS),
        ("Quantised caches", CACHES, caches, CACHE_COLUMNS),
    ]


def counted(rows: list[Row]) -> str:
    """A sentence on how many of these types were tried, and on how many the results are exact."""
    tried = [row for row in rows if not row.not_tried]
    exact = sum(row.cells["contrastive search"].verdict in WAYS for row in tried)
    exits = sum(row.cells["early exits"].verdict == "yes" for row in tried)
    exactly = f"contrastive search is exact on {exact}, early exits on {exits}."
    return f" Of {len(rows)} types {len(tried)} were tried; {exactly}"


ENCODER_DECODERS = (
    "The decoder begins with one token in each of two rows. Text encoders read 7 and 11 tokens; for encoders of sound "
    "and images, the states that they would return are drawn at random. Scores must be equal to 3e-4, here and in the "
    "tables below."
)
BESIDE = (
    "The prompts are text alone, as above, and, if the tiny model accepts one, an image before each text. If the model "
    "itself computes another result with its cache than from the first token, the result must equal the one with its "
    "cache, and the row says so."
)
CACHES = (
    'A tiny llama with `cache_implementation="quantized"`, which quantises its cache again every 4 tokens. Contrastive '
    "search is compared with transformers' own `generate` on the same cache, token by token, without branches."
)


def _record(row: Row) -> dict[str, object]:
    cells = {name: {"verdict": cell.verdict, "reason": cell.reason} for name, cell in row.cells.items()}
    return {"type": row.model_type, "not tried": row.not_tried, "cells": cells}
