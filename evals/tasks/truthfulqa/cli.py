"""``decoding eval truthfulqa``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from decoding.cli.options import Device, DeviceMap, Dtype, Json, Model, PrefillChunk, TpPlan
from decoding.cli.output import as_json
from decoding.errors import OptionError
from decoding.evals.engine.configurations import Configuration, configured
from decoding.evals.engine.options import Limit, Output, Seed, SkipBad, Strategies, of_last_rank, prepared, report
from decoding.evals.engine.results import Results
from decoding.evals.engine.runner import run
from decoding.evals.tasks.truthfulqa import miniature
from decoding.evals.tasks.truthfulqa.data import Question, load
from decoding.evals.tasks.truthfulqa.generation import Generation
from decoding.evals.tasks.truthfulqa.judge import Judge
from decoding.evals.tasks.truthfulqa.multiple_choice import MultipleChoice
from decoding.evals.tasks.truthfulqa.prompts import STYLES, Prompt, prompt_of
from decoding.models.devices import input_device
from decoding.models.loading import load as load_model
from decoding.strategies.registry import StrategySpec

__all__ = ["truthfulqa_command"]

Evaluation = MultipleChoice | Generation

WRITTEN_AT_ONCE = 8  # answers
ON_THE_HUB = "truthfulqa/truthful_qa"


def truthfulqa_command(
    model: Model = "expert",
    strategy: Strategies = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="TruthfulQA.csv, mc_task.json, a translation, a folder, or a hub name."),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(metavar="CODES", help="Such as es,de: the files of the folder --data that end so, one by one."),
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="STYLE", help=f"How to ask: {', '.join(STYLES)}.")] = "dola",
    miniature_: Annotated[
        bool, typer.Option("--miniature", help="The embedded questions instead, and strategies to compare on them.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="With --miniature: choose hyper-parameters on its validation questions.")
    ] = False,
    max_branch_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of questions and answers in one forward pass; by default 512."),
    ] = None,
    generation: Annotated[
        bool,
        typer.Option("--generation", help="Let strategies write answers: BLEU, ROUGE, judges."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="With --generation: of an answer.")] = 50,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Questions at a time, which a kill loses; by default 4, with --generation 8."
        ),
    ] = None,
    judge_truth: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --generation: a fine-tuned judge of truth.")
    ] = None,
    judge_info: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --generation: one of what an answer tells.")
    ] = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    tp_plan: TpPlan = None,
    prefill_chunk: PrefillChunk = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """TruthfulQA: multiple choice (MC1, MC2, MC3, normalised and raw) or --generation, with paired tests.

    Example: decoding eval truthfulqa --miniature --strategy greedy --strategy dola
    """
    if miniature_ and (data is not None or languages is not None):
        raise OptionError("--miniature brings its own questions: leave --data and --languages out")
    if tune and (not miniature_ or strategy):
        raise OptionError("--tune: accepted with --miniature, whose grids it chooses from, and without --strategy")
    if tune and generation:
        raise OptionError("--tune: chooses by multiple choice; leave --generation out")
    named_judges = {"truth": judge_truth, "info": judge_info}
    if any(named_judges.values()) and not generation:
        raise OptionError("--judge-truth and --judge-info judge written answers: give --generation as well")
    asked = None if prompt == "chat" else prompt_of(prompt)
    source = data or f"{ON_THE_HUB}:{'generation' if generation else 'multiple_choice'}"
    wanted = [] if miniature_ else languages.split(",") if languages else [None]
    sets = [(language, load(source, language, skip_bad)) for language in wanted]  # bad data before a model is loaded
    ready = prepared(
        model, strategy, device, dtype, output, device_map=device_map, tp_plan=tp_plan, prefill_chunk=prefill_chunk
    )
    judges = [
        Judge(asks, *load_model(name, str(input_device(ready.model)), dtype))
        for asks, name in named_judges.items()
        if name
    ]

    def task_of(questions: Sequence[Question], asked: Prompt, left_out: Sequence[str], suffix: str) -> Evaluation:
        if generation:
            return Generation(
                ready.model, ready.tokenizer, questions, asked, max_new_tokens=max_new_tokens,
                batch_size=batch_size or WRITTEN_AT_ONCE,
                judges=judges, left_out=left_out, name=f"truthfulqa_generation{suffix}",
            )  # fmt: skip
        name = "truthfulqa_miniature" if miniature_ else f"truthfulqa_mc{suffix}"
        return MultipleChoice(
            ready.model, ready.tokenizer, questions, asked, left_out=left_out, name=name,
            max_branch_tokens=max_branch_tokens, batch_size=batch_size,
        )  # fmt: skip

    common: dict[str, Any] = {"output": output, "limit": limit, "seed": seed}
    found: list[Results | None] = []
    asked_for: list[tuple[str, list[Configuration]]] = []

    def evaluated(choices: list[StrategySpec], task: Evaluation, **options: Any) -> None:
        made = configured(choices, ready.model, ready.tokenizer, ready.name, task=task.settings, seed=seed)
        asked_for.append((task.name, made))
        try:
            found.append(run(task, made, **common, **options))
        finally:
            if isinstance(task, MultipleChoice):
                task.release()

    if miniature_:
        choices, extra = ready.choices if strategy else list(miniature.STRATEGIES), {}
        if tune:
            choices, extra["tuning"] = miniature.tuned(ready.model, ready.tokenizer, ready.name, **common)
        task = task_of(miniature.questions("test"), prompt_of("none"), (), "_miniature")
        evaluated(choices, task, skip_bad=skip_bad, extra=extra)
    else:
        asked = asked or prompt_of(prompt, ready.tokenizer)
        for language, (questions, left_out) in sets:
            task = task_of(questions, asked, left_out, f"_{language}" if language else "")
            choices = [_in_language(each, language) if language else each for each in ready.choices]
            evaluated(choices, task, skip_bad=skip_bad)
    whole = of_last_rank(found, asked_for, output, limit=limit, seed=seed)
    if whole is None:
        return
    if json and len(whole) > 1:
        print(as_json(whole, indent=2))
        return
    for results in whole:
        report(results, task.figures, json)


def _in_language(choice: StrategySpec, language: str) -> StrategySpec:
    """A strategy whose guidance is one of several languages, with that of the questions."""
    guidance = getattr(choice.strategy, "guidance", None)
    if guidance != "default" and not isinstance(guidance, Mapping):
        return choice
    return dataclasses.replace(choice, strategy=dataclasses.replace(choice.strategy, language=language))
