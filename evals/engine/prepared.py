"""Preparation of an evaluation from its options, and the report of its results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from decoding.evals.engine.tables import show_results, show_tuning
from decoding.evals.engine.task import Task
from decoding.evals.engine.tuning import tune
from decoding.evals.engine.vllm_texts import VllmTexts, asked_of_vllm, vllm_texts
from decoding.serving.vllm.engine import require_vllm
from decoding.strategies.effective_config import warn_of_folder
from decoding.strategies.generation_options import NO_OPTIONS
from decoding.strategies.parameters_text import from_text, named_values
from decoding.strategies.registry import StrategySpec, candidates_of, parse_strategy

__all__ = ["Candidates", "Prepared", "candidates_of_options", "of_last_rank", "prepared", "report"]

Candidates = Sequence[tuple[str, Sequence[StrategySpec]]]
"""Strategies as they were given, each with those that it stands for."""


@dataclass(frozen=True)
class Prepared:
    """A loaded model, the strategies that were asked for, and the options that everything comes from.

    Attributes:
        options: of the command.
        model: that was asked for.
        tokenizer: its own.
        candidates: for each strategy that was asked for, as it was given, the strategies that it stands for: itself,
            or under ``decoding tune`` those to choose from.
        texts: what generates in place of the model; None for the model itself.
        runs: the task of each run so far, and its configurations.
    """

    options: EvaluationOptions
    model: Any
    tokenizer: Any
    candidates: Candidates
    texts: VllmTexts | None = None
    runs: list[tuple[str, Sequence[Configuration]]] = field(default_factory=list)

    @property
    def specs(self) -> list[StrategySpec]:
        """The strategies that were asked for; under ``decoding tune`` all candidates."""
        return [spec for _, specs in self.candidates for spec in specs]

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
            engine=None if self.texts is None else self.texts.identity,
        )  # fmt: skip

    def run(
        self, task: Task, configurations: Sequence[Configuration], extra: Mapping[str, Any] | None = None
    ) -> Results | None:
        """Run a task; see :func:`decoding.evals.engine.runner.run`.

        Under ``decoding tune`` the configurations are those of all candidates, in their order; see
        :func:`decoding.evals.engine.tuning.tune`.
        """
        options = self.options
        common: dict[str, Any] = {
            "output": options.output, "limit": options.limit, "seed": options.seed, "skip_bad": options.skip_bad,
            "extra": extra,
        }  # fmt: skip
        if options.tuning.validation is None:
            self.runs.append((task.name, configurations))
            return run(task, configurations, **common)
        of_all = iter(configurations)
        candidates = [(given, [next(of_all) for _ in specs]) for given, specs in self.candidates]
        at_least = named_values("--at-least", options.tuning.at_least or (), "diversity=90")
        tuned = tune(
            task, candidates, options.tuning.validation, by=options.tuning.by or None,
            at_least={name: from_text(f"--at-least {name}", value, float) for name, value in at_least.items()} or None,
            **common,
        )  # fmt: skip
        self.runs.append((tuned.name, tuned.chosen))
        return tuned.results


def candidates_of_options(
    options: EvaluationOptions, default: Sequence[str] = ("greedy",), completed: Callable[[str], str] = str
) -> Candidates:
    """Return the strategies that were asked for, with those that each stands for under ``decoding tune``.

    Args:
        options: of the command.
        default: strategies where the options name none.
        completed: of a strategy as text, the text with the values that a task has by default.

    Raises:
        OptionError: a strategy that is wrong, or one that two that were asked for stand for.
    """
    tuning = options.tuning.validation is not None
    candidates = [
        (given, [parse_strategy(completed(text)) for text in (candidates_of(given) if tuning else [given])])
        for given in options.strategy or default
    ]
    known: dict[str, str] = {}
    for given, specs in candidates:
        for spec in specs:
            if (other := known.setdefault(spec.label, given)) != given:
                raise OptionError(
                    f"--strategy {other} and --strategy {given} both stand for {spec.label}; expected strategies that "
                    "differ"
                )
    return candidates


def prepared(options: EvaluationOptions, candidates: Candidates | None = None, generates: bool = False) -> Prepared:
    """Load what the options ask for; bad ones are found before a model is loaded.

    With ``--engine vllm`` the model is loaded all the same, on the CPU unless told otherwise: strategies are checked
    against it, and results know its weights.

    Args:
        options: of the command.
        candidates: None for those of the options.
        generates: the task generates texts, which another engine can do.

    Raises:
        DecodingError: whichever option is wrong.
    """
    candidates = candidates_of_options(options) if candidates is None else candidates
    placement = options.placement
    if options.engine == "vllm":
        if not generates:
            raise OptionError("--engine vllm generates texts, and this evaluation reads scores: leave it out")
        for _, specs in candidates:
            for spec in specs:
                asked_of_vllm(spec)
        require_vllm()
        placement = replace(placement, device=placement.device or "cpu", dtype=placement.dtype or _usual_dtype())
    elif options.engine_option:
        raise OptionError("--engine-option: expected with --engine vllm")
    writable(options.output)
    if placement.device_map is None and placement.tp_plan is None:
        placement = replace(placement, device=_device_of_rank(placement.device))
    model, tokenizer = placement.load(options.model)
    enable_chunked_prefill(model, options.prefill_chunk, padded=True)
    texts = None
    if options.engine == "vllm":
        texts = vllm_texts(
            options.model, [spec for _, specs in candidates for spec in specs], model, options.engine_option or ()
        )
    return Prepared(options, model, tokenizer, candidates, texts)


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
    if "tuning" in results:
        show_tuning(console(), results["tuning"])
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


def _usual_dtype() -> str:
    """The dtype in which vLLM's device, not that of transformers' model, usually computes."""
    return "auto" if torch.cuda.is_available() else "float32"


def _device_of_rank(device: str | None) -> str | None:
    """Return the GPU of this process's local rank, where a node has several ranks and no device was named."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if device is None and local.isdigit() and int(local) < torch.cuda.device_count():
        return f"cuda:{local}"
    return device
