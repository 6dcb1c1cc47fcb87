"""``decoding demo``: the strategies at work on the embedded models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from decoding.cli.options import Json, Output, ParallelPlacement, Seed, expanded
from decoding.cli.output import as_json, console, writable, write_files

__all__ = ["demo_command"]


@dataclass(frozen=True)
class DemoPlacement(ParallelPlacement):
    """Where the models go: to the CPU by default, as a GPU is no faster at 2 million parameters."""

    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...; by default cpu.")] = None


@expanded
def demo_command(
    *,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="At most N new tokens per text.")] = 100,
    seed: Seed = 0,
    placement: DemoPlacement,
    json: Json = False,
    output: Output = None,
) -> None:
    """The main strategies at work on the embedded models: stories, then questions; no download, under a minute.

    Example: decoding demo
    """
    writable(output)

    from decoding.evals.compare.demo import run_demo, show_demo, verdict
    from decoding.models.devices import is_main_process

    if placement.device is None and placement.device_map is None and placement.tp_plan is None:
        placement = replace(placement, device="cpu")
    model, tokenizer = placement.load("expert")
    stories, answers, questions = run_demo(model, tokenizer, max_new_tokens=max_new_tokens, seed=seed)
    if not is_main_process(model):
        return
    sentence = verdict(stories)
    asked = {
        "questions": [question.question for question in questions],
        "answers": [answer.as_dict() for answer in answers],
    }
    record = as_json({**stories.as_dict(), "verdict": sentence, "asked": asked}, indent=2)
    write_files(output, {"demo.json": record + "\n", "demo.md": f"{stories.as_markdown()}\n{sentence}\n"})
    if json:
        print(record)
        return
    show_demo(console(), stories, answers, questions)
