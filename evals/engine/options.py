"""Options that the evaluations share. Nothing here needs model code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.options import Json, Model, ParallelPlacement, PrefillChunk, complete_strategy, known_strategies
from decoding.errors import OptionError, nearest

__all__ = ["ENGINES", "ComparisonOptions", "EvaluationOptions", "Strategies", "Tuning"]

Strategies = Annotated[
    list[str] | None,
    typer.Option(
        "--strategy",
        metavar="NAME:PARAMETER=VALUE,...",
        callback=known_strategies,
        autocompletion=complete_strategy,
        help="A strategy; repeatable; others are compared with the first; by default greedy, or what the task names.",
    ),
]


ENGINES = ("local", "ray", "vllm")


def _known_engine(given: str) -> str:
    if given not in ENGINES:
        raise OptionError(f"--engine {given!r}{nearest(given, ENGINES)}")
    return given


Engine = Annotated[
    str,
    typer.Option(
        metavar="|".join(ENGINES),
        callback=_known_engine,
        help="ray: Ray workers share the documents, with a model each. vllm: it generates the texts.",
    ),
]


@dataclass(frozen=True)
class Tuning:
    """Options of ``decoding tune``, which ``decoding eval`` does not have."""

    validation: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Choose on N documents, drawn at random; the results are of the others."),
    ] = None
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC", help="Choose the highest; repeatable, for equals; by default the task's first."),
    ] = None
    at_least: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Choose among those that reach it; repeatable."),
    ] = None


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of every evaluation: the model, the strategies, which documents, and where results go."""

    model: Model = "expert"
    strategy: Strategies = None
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N documents.")] = None
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad documents out and count them.")] = False
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the bootstrap and of random draws.")] = 0
    placement: ParallelPlacement = field(default_factory=ParallelPlacement)
    prefill_chunk: PrefillChunk = None
    engine: Engine = "local"
    engine_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="With --engine vllm, an option of vllm.LLM; repeatable."),
    ] = None
    tuning: Tuning = field(default_factory=Tuning)
    json: Json = False
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of samples and results; with it, an interrupted run continues."),
    ] = None


@dataclass(frozen=True)
class ComparisonOptions(EvaluationOptions):
    """Options of the evaluations whose table has paired tests."""

    holm: Annotated[
        bool, typer.Option("--holm", help="Correct p-values for the number of comparisons in the table (Holm).")
    ] = False
