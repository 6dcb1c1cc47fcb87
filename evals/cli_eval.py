"""``decoding eval``: the evaluations, and the options that they share. A task adds one command to ``eval_app``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from decoding.cli_options import Device, Dtype, as_json, console, writable
from decoding.evals.results import Results, show_results
from decoding.loading import load
from decoding.registry import Choice, named

__all__ = ["Limit", "Output", "Prepared", "Seed", "SkipBad", "Strategies", "eval_app", "prepared", "report"]

eval_app = typer.Typer(name="eval", no_args_is_help=True, help="Evaluate strategies. Example: decoding eval truthfulqa")

Strategies = Annotated[
    list[str] | None,
    typer.Option(
        "--strategy",
        metavar="NAME:PARAMETER=VALUE,...",
        help="A strategy; repeatable; the others are compared with the first; by default greedy.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of samples and results; run again with it to go on after an end."),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N documents.")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the bootstrap and of random draws.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad documents out and count them.")]


@dataclass(frozen=True)
class Prepared:
    """A loaded model and the strategies asked for."""

    name: str
    model: Any
    tokenizer: Any
    choices: list[Choice]


def prepared(
    model: str,
    strategy: Sequence[str] | None,
    device: Device,
    dtype: Dtype,
    output: Path | None,
    default: Sequence[str] = ("greedy",),
) -> Prepared:
    """What the shared options come to; bad ones are found before a model is loaded.

    Raises:
        DecodingError: whichever is wrong.
    """
    choices = [named(spec) for spec in strategy or default]
    writable(output)
    loaded, tokenizer = load(model, _own_device(device), dtype)
    return Prepared(model, loaded, tokenizer, choices)


def report(results: Results | None, metrics: Sequence[str], json: bool, percent: bool = True) -> None:
    """Print the table of results, or JSON; on a rank that did not end last, nothing."""
    if results is None:
        return
    if json:
        print(as_json(results, indent=2))
        return
    show_results(console(), results, metrics, percent)


def _own_device(device: str | None) -> str | None:
    """On a node of several ranks, each has the GPU of its local rank unless told otherwise."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if device is None and local.isdigit() and int(local) < torch.cuda.device_count():
        return f"cuda:{local}"
    return device
