"""Answers of strategies to the miniature's questions, whose popular answer is false."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoding.evals.engine.text_generation import TextGenerator
from decoding.evals.miniature import Question
from decoding.strategies.registry import StrategySpec

__all__ = ["Answers", "ask", "show_answers"]

ANSWER_TOKENS = 16  # the longest right answer has 13


@dataclass(frozen=True)
class Answers:
    """The answers of one strategy.

    Attributes:
        spec: the strategy.
        texts: the first line of each answer.
        true: number of answers that begin with a right one.
        popular: number of answers that begin with the popular misconception.
    """

    spec: StrategySpec
    texts: list[str]
    true: int
    popular: int

    def as_dict(self) -> dict[str, Any]:
        """The answers as in ``demo.json``."""
        return {
            "strategy": self.spec.name,
            "parameters": self.spec.recorded,
            "answers": self.texts,
            "true": self.true,
            "popular": self.popular,
        }


def ask(model: Any, tokenizer: Any, specs: Sequence[StrategySpec], questions: Sequence[Question]) -> list[Answers]:
    """Ask every question with every strategy, all questions in one batch."""
    generator = TextGenerator(model, tokenizer, ANSWER_TOKENS)
    prompts = [question.prompt for question in questions]
    by_strategy = []
    for spec in specs:
        answers = generator.generate(spec.with_tokenizer(tokenizer), prompts, [0] * len(prompts))
        texts = [_first_line(answer.text) for answer in answers]
        pairs = list(zip(texts, questions, strict=True))
        by_strategy.append(
            Answers(
                spec,
                texts,
                sum(text.startswith(question.correct_answers) for text, question in pairs),
                sum(text.startswith(_misconception(question)) for text, question in pairs),
            )
        )
    return by_strategy


def show_answers(out: Console, answers: Sequence[Answers], questions: Sequence[Question], shown: int = 2) -> None:
    """Print the answers to the first questions, then the counts over all."""
    for index, question in enumerate(questions[:shown]):
        out.print(Text(f"Q: {question.question}", style="bold").append(f"  (true: {question.best_answer})", "dim"))
        for of_one in answers:
            out.print(Text(f"  {of_one.spec.name:22}", style="cyan").append(of_one.texts[index], "default"))
        out.print()
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("strategy")
    for column in ("true", "popular error", "something else"):
        table.add_column(column, justify="right")
    for of_one in answers:
        rest = len(of_one.texts) - of_one.true - of_one.popular
        table.add_row(of_one.spec.name, str(of_one.true), str(of_one.popular), str(rest))
    out.print(table)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _misconception(question: Question) -> tuple[str, ...]:
    """The popular answer in its two wordings."""
    return question.incorrect_answers[:2]
