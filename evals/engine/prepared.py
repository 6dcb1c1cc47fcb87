"""Preparation of an evaluation from its options, and the report of its results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from decoding.capabilities.chunked_prefill import enable_chunked_prefill
from decoding.cli.output import as_json, console, writable
from decoding.errors import OptionError
from decoding.evals.engine.configurations import Configuration, configured
from decoding.evals.engine.options import EvaluationOptions
from decoding.evals.engine.results import Results, corrected, results_in
from decoding.evals.engine.runner import run
from decoding.evals.engine.tables import show_results
from decoding.evals.engine.task import Task
from decoding.strategies.effective_config import warn_of_folder
from decoding.strategies.generation_options import NO_OPTIONS
from decoding.strategies.registry import StrategySpec, parse_strategy

__all__ = ["Prepared", "of_last_rank", "prepared", "report"]


@dataclass(frozen=True)
class Prepared:
    """A loaded model, the strategies that were asked for, and the options that everything comes from."""

    options: EvaluationOptions
    model: Any
    tokenizer: Any
    specs: list[StrategySpec]

    def configurations(
        self,
        settings: Mapping[str, Any],
        specs: Sequence[StrategySpec] | None = None,
        generation_config: Mapping[str, Any] | None = NO_OPTIONS,
    ) -> list[Configuration]:
        """Return the configurations of a task with these settings: of the strategies asked for, or of others.

        Args:
            settings: of the task.
            specs: the strategies; None for those asked for.
            generation_config: options of ``--generation-config``; None for a task that generates no text.
        """
        options = self.options
        if generation_config is not None:
            warn_of_folder(self.model, generation_config)
        return configured(
            self.specs if specs is None else specs, self.model, self.tokenizer, options.model, task=settings,
            seed=options.seed, generation_config=generation_config,
        )  # fmt: skip

    def run(
        self, task: Task, configurations: Sequence[Configuration], extra: Mapping[str, Any] | None = None
    ) -> Results | None:
        """Run a task; see :func:`decoding.evals.engine.runner.run`."""
        options = self.options
        return run(
            task, configurations, output=options.output, limit=options.limit, seed=options.seed,
            skip_bad=options.skip_bad, extra=extra,
        )  # fmt: skip


def prepared(options: EvaluationOptions, default: Sequence[str] = ("greedy",)) -> Prepared:
    """Load what the options ask for; bad ones are found before a model is loaded.

    Args:
        options: of the command.
        default: strategies where the options name none.

    Raises:
        DecodingError: whichever option is wrong.
    """
    specs = [parse_strategy(spec) for spec in options.strategy or default]
    writable(options.output)
    placement = options.placement
    if placement.device_map is None and placement.tp_plan is None:
        placement = replace(placement, device=_device_of_rank(placement.device))
    model, tokenizer = placement.load(options.model)
    enable_chunked_prefill(model, options.prefill_chunk, padded=True)
    return Prepared(options, model, tokenizer, specs)


def report(results: Results | None, metrics: Sequence[str], json: bool, holm: bool = False) -> None:
    """Print the table of results, or JSON; nothing on a rank that did not end last.

    Args:
        results: of an evaluation.
        metrics: those that the table shows, shares of 1.
        json: print JSON in place of the table.
        holm: correct the p-values for all of the table.
    """
    if results is None:
        return
    if holm:
        results = corrected(results, metrics)
    if json:
        print(as_json(results, indent=2))
        return
    show_results(console(), results, metrics)


def of_last_rank(
    results: Sequence[Results | None],
    tasks: Sequence[tuple[str, Sequence[Configuration]]],
    output: Path | None,
    *,
    limit: int | None,
    seed: int,
) -> list[Results] | None:
    """Return the results of several runs on the rank that ended the last of them; None on the others.

    Each run's results are on whichever rank ended last in it. The rank that ended last in the last run reads the
    others from their files.

    Args:
        results: of each run on this rank.
        tasks: the name of each task and its configurations.
        output: the folder of the results.
        limit: as the runs had it.
        seed: as the runs had it.
    """
    if not results or results[-1] is None:
        return None
    whole = [
        ours or (results_in(output, name, configurations, limit=limit, seed=seed) if output else None)
        for ours, (name, configurations) in zip(results, tasks, strict=True)
    ]
    missing = next((name for table, (name, _) in zip(whole, tasks, strict=True) if table is None), None)
    if missing is not None:
        raise OptionError(f"{missing}: another rank has yet to write its results; run the same command once more")
    return [table for table in whole if table is not None]


def _device_of_rank(device: str | None) -> str | None:
    """Return the GPU of this process's local rank, where a node has several ranks and no device was named."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if device is None and local.isdigit() and int(local) < torch.cuda.device_count():
        return f"cuda:{local}"
    return device
