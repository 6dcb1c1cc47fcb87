"""``decoding eval``: the evaluations, and the options that they share. A task adds one command to ``eval_app``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from decoding.capabilities.chunked_prefill import enable_chunked_prefill
from decoding.cli.options import Device, DeviceMap, Dtype, PrefillChunk, TpPlan
from decoding.cli.output import as_json, console, writable
from decoding.errors import OptionError
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.results import Results, results_in, show_results
from decoding.models.loading import load
from decoding.strategies.registry import StrategySpec, parse_strategy

__all__ = ["Limit", "Output", "Prepared", "Seed", "SkipBad", "Strategies", "eval_app", "of_last_rank", "prepared", "report"]  # fmt: skip

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
    choices: list[StrategySpec]


def prepared(
    model: str,
    strategy: Sequence[str] | None,
    device: Device,
    dtype: Dtype,
    output: Path | None,
    default: Sequence[str] = ("greedy",),
    *,
    device_map: DeviceMap = None,
    tp_plan: TpPlan = None,
    prefill_chunk: PrefillChunk = None,
) -> Prepared:
    """What the shared options come to; bad ones are found before a model is loaded.

    Raises:
        DecodingError: whichever is wrong.
    """
    choices = [parse_strategy(spec) for spec in strategy or default]
    writable(output)
    where = _own_device(device) if device_map is None and tp_plan is None else device
    loaded, tokenizer = load(model, where, dtype, device_map=device_map, tp_plan=tp_plan)
    enable_chunked_prefill(loaded, prefill_chunk, padded=True)
    return Prepared(model, loaded, tokenizer, choices)


def report(results: Results | None, metrics: Sequence[str], json: bool, percent: bool = True) -> None:
    """Print the table of results, or JSON; on a rank that did not end last, nothing."""
    if results is None:
        return
    if json:
        print(as_json(results, indent=2))
        return
    show_results(console(), results, metrics, percent)


def of_last_rank(
    found: Sequence[Results | None],
    asked: Sequence[tuple[str, Sequence[Configuration]]],
    output: Path | None,
    *,
    limit: int | None,
    seed: int,
) -> list[Results] | None:
    """The results of several runs, on the rank that ended the last of them; None on the others.

    Each run ends on whichever rank was last in it. Who is last in the last one finds the rest in the results files.

    Args:
        found: what each run gave on this rank.
        asked: the name of each task and its configurations.
        output: the folder of the results.
        limit: as the runs had it.
        seed: likewise.
    """
    if not found or found[-1] is None:
        return None
    whole = [
        each or (results_in(output, name, configurations, limit=limit, seed=seed) if output else None)
        for each, (name, configurations) in zip(found, asked, strict=True)
    ]
    missing = next((name for each, (name, _) in zip(whole, asked, strict=True) if each is None), None)
    if missing is not None:
        raise OptionError(f"{missing}: another rank has yet to write its results; run the same command once more")
    return [each for each in whole if each is not None]


def _own_device(device: str | None) -> str | None:
    """On a node of several ranks, each has the GPU of its local rank unless told otherwise."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if device is None and local.isdigit() and int(local) < torch.cuda.device_count():
        return f"cuda:{local}"
    return device
