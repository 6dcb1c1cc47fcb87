"""``decoding eval truthfulqa``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from decoding.cli_options import Device, Dtype, Json, Model, as_json
from decoding.errors import OptionError
from decoding.evals.cli_eval import Limit, Output, Prepared, Seed, SkipBad, Strategies, prepared, report
from decoding.evals.configurations import configured
from decoding.evals.results import Results
from decoding.evals.runner import run
from decoding.evals.truthfulqa import miniature
from decoding.evals.truthfulqa.data import load
from decoding.evals.truthfulqa.multiple_choice import METRICS, MultipleChoice
from decoding.evals.truthfulqa.prompts import STYLES, prompt_of
from decoding.registry import Choice

__all__ = ["truthfulqa_command"]

ON_THE_HUB = "truthfulqa/truthful_qa:multiple_choice"


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
    limit: Limit = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """TruthfulQA's multiple choice: MC1, MC2 and MC3, normalised and raw, with paired tests against the first strategy.

    Example: decoding eval truthfulqa --miniature --strategy greedy --strategy dola
    """
    if miniature_ and (data is not None or languages is not None):
        raise OptionError("--miniature brings its own questions: leave --data and --languages out")
    if tune and (not miniature_ or strategy):
        raise OptionError("--tune: accepted with --miniature, whose grids it chooses from, and without --strategy")
    ready = prepared(model, strategy, device, dtype, output)
    common: dict[str, Any] = {"output": output, "limit": limit, "seed": seed}
    found: list[Results | None] = []
    if miniature_:
        choices, extra = ready.choices if strategy else list(miniature.STRATEGIES), {}
        if tune:
            choices, extra["tuning"] = miniature.tuned(ready.model, ready.tokenizer, ready.name, **common)
        task = MultipleChoice(
            ready.model, ready.tokenizer, miniature.questions("test"), prompt_of("none"), name="truthfulqa_miniature",
            max_branch_tokens=max_branch_tokens,
        )  # fmt: skip
        found.append(_run(ready, choices, task, skip_bad=skip_bad, extra=extra, **common))
    else:
        asked = prompt_of(prompt, ready.tokenizer)
        for language in languages.split(",") if languages else [None]:
            questions, left_out = load(data or ON_THE_HUB, language, skip_bad)
            task = MultipleChoice(
                ready.model, ready.tokenizer, questions, asked, left_out=left_out,
                name="truthfulqa_mc" + (f"_{language}" if language else ""), max_branch_tokens=max_branch_tokens,
            )  # fmt: skip
            choices = [_in_language(each, language) if language else each for each in ready.choices]
            found.append(_run(ready, choices, task, skip_bad=skip_bad, **common))
    if json and len(found) > 1:
        print(as_json([each for each in found if each is not None], indent=2))
        return
    for results in found:
        report(results, METRICS, json)


def _run(ready: Prepared, choices: list[Choice], task: MultipleChoice, *, seed: int, **options: Any) -> Results | None:
    made = configured(choices, ready.model, ready.tokenizer, ready.name, task=task.settings, seed=seed)
    try:
        return run(task, made, seed=seed, **options)
    finally:
        task.release()


def _in_language(choice: Choice, language: str) -> Choice:
    """A strategy whose guidance is one of several languages, with that of the questions."""
    guidance = getattr(choice.how, "guidance", None)
    if guidance != "default" and not isinstance(guidance, Mapping):
        return choice
    return dataclasses.replace(choice, how=dataclasses.replace(choice.how, language=language))
