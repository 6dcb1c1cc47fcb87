"""``decoding demo``: what the strategies are for, seen in a minute on the embedded models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
import typer

from decoding.cli.options import DeviceMap, Dtype, Json, Output, Seed, TpPlan
from decoding.cli.output import as_json, console, writable, write_files
from decoding.evals import miniature
from decoding.evals.compare.asking import ask, show_answers
from decoding.evals.compare.compare import Comparison, Figures, compare, show_figures, show_texts
from decoding.models.devices import is_main_process
from decoding.models.loading import load
from decoding.strategies.registry import parse_strategy

__all__ = ["demo_command", "verdict"]

PROMPTS = 3
# A model of 2 million parameters has few good candidates: at the papers' α of 0.6 it starts to break words.
STRATEGIES = ("greedy", "sampling", "contrastive-search:penalty_alpha=0.4,top_k=4")

QUESTIONS = 60
# Of a handful of settings tried on 80 validation questions, those with the most true answers; asked are test questions.
ANSWERING = (
    "greedy",
    "contrastive-search:penalty_alpha=0.4,top_k=4",
    f"contrastive-decoding:amateur=prompt:{miniature.HEARSAY}",
    "dola:layers=2,3,alpha=0.3",
    f"context-aware:context={miniature.GUIDANCE}",
    "lol:amateur=amateur,lower_layers=0.75,amateur_weight=0.25,lower_amateur_weight=0.5,fusion_weight=0.1,"
    f"guidance={miniature.GUIDANCE}",
)


def demo_command(
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many new tokens a text.")] = 100,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...; by default cpu.")] = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    tp_plan: TpPlan = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """Every strategy at work on the embedded models: stories, then questions; no download, under a minute.

    Example: decoding demo
    """
    writable(output)
    if device is None and device_map is None and tp_plan is None:
        device = "cpu"  # a GPU gains nothing at 2 million parameters
    model, tokenizer = load("expert", device, dtype, device_map=device_map, tp_plan=tp_plan)
    choices = [parse_strategy(spec) for spec in STRATEGIES]
    prompts = miniature.prompts()[:PROMPTS]
    questions = miniature.questions("test")[:QUESTIONS]
    with _one_thread():
        result = compare("expert", model, tokenizer, choices, prompts, max_new_tokens=max_new_tokens, seed=seed)
        answers = ask(model, tokenizer, [parse_strategy(spec) for spec in ANSWERING], questions)
    if not is_main_process(model):
        return
    sentence = verdict(result)
    asked = {"questions": [each.question for each in questions], "answers": [each.as_dict() for each in answers]}
    record = as_json({**result.as_dict(), "verdict": sentence, "asked": asked}, indent=2)
    write_files(output, {"demo.json": record + "\n", "demo.md": f"{result.as_markdown()}\n{sentence}\n"})
    if json:
        print(record)
        return
    out = console()
    show_texts(out, result)
    if out.is_terminal:
        out.print("Dim and underlined: phrases of four or more words that stood in the text before.\n", style="dim")
    show_figures(out, result)
    out.print()
    out.print(sentence, markup=False)
    out.print()
    out.rule(f"{len(questions)} questions whose popular answer is false", align="left", characters="─")
    out.print("Of these entities, what is told at the market contradicts the encyclopaedia more often than not.\n")
    show_answers(out, answers, questions)


@contextmanager
def _one_thread() -> Iterator[None]:
    """At 2 million parameters a second thread gains nothing, and on a busy machine threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def verdict(result: Comparison) -> str:
    """One sentence that says what the figures show of contrastive search against greedy search, whichever is ahead."""
    figures: dict[str, Figures] = {
        choice.name: each for choice, each in zip(result.choices, result.figures, strict=True)
    }
    greedy, contrastive = figures["greedy"], figures["contrastive-search"]
    cost = contrastive.ms_per_token / greedy.ms_per_token
    time = f"at {cost:.2f} times greedy's time per token"
    shares = f"{contrastive.rep_3:.1f}% against {greedy.rep_3:.1f}%"
    if contrastive.rep_3 < greedy.rep_3 and contrastive.diversity > greedy.diversity:
        return f"Contrastive search repeats fewer three-word phrases than greedy search ({shares}), {time}."
    if contrastive.rep_3 == greedy.rep_3:
        return f"Here contrastive search repeats as many three-word phrases as greedy search ({shares}), {time}."
    if contrastive.rep_3 < greedy.rep_3:
        return (
            f"Contrastive search repeats fewer three-word phrases than greedy search ({shares}), yet its diversity "
            f"is not higher ({contrastive.diversity:.1f}% against {greedy.diversity:.1f}%), {time}."
        )
    return f"Here contrastive search repeats more three-word phrases than greedy search ({shares}), {time}."
