"""``decoding demo``: what the strategies are for, seen in a minute on the embedded models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from decoding.evals import miniature
from decoding.evals.compare.asking import Answers, ask, show_answers
from decoding.evals.compare.compare import Comparison, Figures, compare, show_figures, show_texts
from decoding.strategies.registry import parse_strategy

__all__ = ["run_demo", "show_demo", "verdict"]

PROMPTS = 3
# A model of 2 million parameters has few good candidates: at the papers' α of 0.6 it starts to break words.
STRATEGIES = ("greedy", "sampling", "contrastive-search:penalty_alpha=0.4,top_k=4")

QUESTIONS = 60
# Of a handful of settings tried on 80 validation questions, those with the most true answers; the demo asks others.
ANSWERING = (
    "greedy",
    "contrastive-search:penalty_alpha=0.4,top_k=4",
    f"contrastive-decoding:amateur=prompt:{miniature.HEARSAY}",
    "dola:layers=2,3,alpha=0.3",
    f"context-aware:context={miniature.GUIDANCE}",
    "lol:amateur=amateur,lower_layers=0.75,amateur_weight=0.25,lower_amateur_weight=0.5,fusion_weight=0.1,"
    f"guidance={miniature.GUIDANCE}",
)


def run_demo(
    model: Any, tokenizer: Any, *, max_new_tokens: int, seed: int
) -> tuple[Comparison, list[Answers], list[miniature.Question]]:
    """Continue stories with several strategies, and answer questions with all.

    Returns:
        The comparison of the stories, the answers of each strategy, and the questions.
    """
    prompts = miniature.prompts()[:PROMPTS]
    questions = miniature.questions("test")[:QUESTIONS]
    with _one_thread():
        stories = compare(
            "expert", model, tokenizer, [parse_strategy(spec) for spec in STRATEGIES], prompts,
            max_new_tokens=max_new_tokens, seed=seed,
        )  # fmt: skip
        answers = ask(model, tokenizer, [parse_strategy(spec) for spec in ANSWERING], questions)
    return stories, answers, questions


def show_demo(
    out: Console, stories: Comparison, answers: Sequence[Answers], questions: Sequence[miniature.Question]
) -> None:
    """Print the stories, their figures and the verdict, then the answers."""
    show_texts(out, stories)
    if out.is_terminal:
        out.print("Dim and underlined: phrases of four or more words that occurred earlier in the text.\n", style="dim")
    show_figures(out, stories)
    out.print()
    out.print(verdict(stories), markup=False)
    out.print()
    out.rule(f"{len(questions)} questions whose popular answer is false", align="left", characters="─")
    out.print("Of these entities, what is told at the market contradicts the encyclopaedia more often than not.\n")
    show_answers(out, answers, questions)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: at 2 million parameters a second one gains nothing, and on a busy machine threads wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def verdict(result: Comparison) -> str:
    """One sentence that compares the figures of contrastive search and greedy search, whichever is ahead."""
    figures: dict[str, Figures] = {spec.name: values for spec, values in zip(result.specs, result.figures, strict=True)}
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
