"""What each strategy answers to the miniature's questions, whose popular answer is false."""

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
    """What one strategy answered.

    Attributes:
        choice: the strategy.
        texts: the first line of each answer.
        true: how many of them begin with a right answer.
        popular: how many begin with the popular misconception.
    """

    choice: StrategySpec
    texts: list[str]
    true: int
    popular: int

    def as_dict(self) -> dict[str, Any]:
        """What ``demo.json`` holds."""
        return {
            "strategy": self.choice.name,
            "parameters": self.choice.parameters,
            "answers": self.texts,
            "true": self.true,
            "popular": self.popular,
        }


def ask(model: Any, tokenizer: Any, choices: Sequence[StrategySpec], questions: Sequence[Question]) -> list[Answers]:
    """Ask every question with every strategy, all questions in one batch where nothing is drawn."""
    generator = TextGenerator(model, tokenizer, ANSWER_TOKENS)
    prompts = [question.prompt for question in questions]
    made = []
    for choice in choices:
        answers = generator.generate(choice.with_tokenizer(tokenizer), prompts, [0] * len(prompts))
        texts = [_first_line(answer.text) for answer in answers]
        pairs = list(zip(texts, questions, strict=True))
        made.append(
            Answers(
                choice,
                texts,
                sum(text.startswith(question.correct_answers) for text, question in pairs),
                sum(text.startswith(_misconception(question)) for text, question in pairs),
            )
        )
    return made


def show_answers(out: Console, answers: Sequence[Answers], questions: Sequence[Question], shown: int = 2) -> None:
    """The answers to the first questions, then the counts over all."""
    for index, question in enumerate(questions[:shown]):
        out.print(Text(f"Q: {question.question}", style="bold").append(f"  (true: {question.best_answer})", "dim"))
        for each in answers:
            out.print(Text(f"  {each.choice.name:22}", style="cyan").append(each.texts[index], "default"))
        out.print()
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("strategy")
    for column in ("true", "popular error", "something else"):
        table.add_column(column, justify="right")
    for each in answers:
        rest = len(each.texts) - each.true - each.popular
        table.add_row(each.choice.name, str(each.true), str(each.popular), str(rest))
    out.print(table)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _misconception(question: Question) -> tuple[str, ...]:
    """The popular answer in its two wordings."""
    return question.incorrect_answers[:2]
