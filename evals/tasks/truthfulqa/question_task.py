"""What the evaluations of TruthfulQA's questions have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.evals.engine.task import Document, GroupTask
from decoding.evals.tasks.truthfulqa.data import Question
from decoding.evals.tasks.truthfulqa.prompts import Prompt

__all__ = ["QuestionTask"]


class QuestionTask(GroupTask):
    """A task whose documents are questions.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        questions: see :func:`decoding.evals.tasks.truthfulqa.data.load`.
        prompt: the form of the prompts.
        name: of the task.
        group_size: number of questions that are read together.
        left_out: why questions were left out when the data were read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        questions: Sequence[Question],
        prompt: Prompt,
        name: str,
        group_size: int,
        left_out: Sequence[str],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.questions = list(questions)
        self.prompt = prompt
        self.name = name
        self.group_size = group_size
        self.skipped = left_out

    @property
    def languages(self) -> list[str]:
        """The languages of the questions, sorted."""
        return sorted({question.language for question in self.questions})

    def documents(self) -> list[Document]:
        """The questions."""
        return [Document(question.id, question, question.where) for question in self.questions]

    def release(self) -> None:
        """Free what is kept between calls."""
