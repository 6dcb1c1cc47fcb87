"""TruthfulQA's multiple choice: MC1, MC2 and MC3 of strategies, from the log-scores of whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.evals.engine.configurations import Configuration, digest
from decoding.evals.engine.task import Document, Record
from decoding.evals.metrics.multiple_choice import mc1, mc2, mc3
from decoding.evals.tasks.truthfulqa.data import Question
from decoding.evals.tasks.truthfulqa.prompt_scorer import PromptScorer, Sums, questions_at_once
from decoding.evals.tasks.truthfulqa.prompts import Prompt
from decoding.evals.tasks.truthfulqa.question_task import QuestionTask

__all__ = ["METRICS", "MultipleChoice"]

METRICS = ("MC1", "MC2", "MC3", "MC1 raw", "MC2 raw", "MC3 raw")
"""Normalised: from the log-softmax of a strategy's scores. Raw: from its unchanged scores."""


class MultipleChoice(QuestionTask):
    """Questions whose answers are scored under several strategies, a handful of questions in a forward pass.

    An answer's score is the sum of its tokens' log-scores, in float64; figures are computed in log space.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        questions: see :func:`decoding.evals.tasks.truthfulqa.data.load`.
        prompt: the form of the prompts.
        left_out: why questions were left out when the data were read.
        name: of the task.
        max_branch_tokens: as in :class:`decoding.Scorer`.
        batch_size: number of questions that are read, and written to the samples, together; None is as many as probably
            fit into ``max_branch_tokens``, by default four.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        questions: Sequence[Question],
        prompt: Prompt,
        *,
        left_out: Sequence[str] = (),
        name: str = "truthfulqa_mc",
        max_branch_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        together = batch_size or questions_at_once(max_branch_tokens)
        super().__init__(model, tokenizer, questions, prompt, name, together, left_out)
        self.settings = {
            "prompt": prompt.settings,
            "languages": self.languages,
            "questions": digest([[question.question, question.mc1, question.mc2] for question in self.questions]),
        }
        texts = [question.question for question in self.questions]
        self._scorer = PromptScorer(model, tokenizer, prompt, texts, max_branch_tokens)

    criterion = ("MC1", "MC2")

    @property
    def figures(self) -> tuple[str, ...]:
        """The metrics to show."""
        return METRICS

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> list[list[Record]]:
        """The figures of several questions, read together.

        Raises:
            InputError: an answer longer than a reader's context.
        """
        questions = [document.content for document in documents]
        asked = [
            self._scorer.asked(
                question.question,
                question.answers,
                [question.columns[answer not in question.mc2.true] for answer in question.answers],
            )
            for question in questions
        ]
        return [
            [_record(question, sums) for sums in by_configuration]
            for question, by_configuration in zip(questions, self._scorer.score(configurations, asked), strict=True)
        ]

    def release(self) -> None:
        """Free the caches."""
        self._scorer.release()


def _record(question: Question, sums: Sums) -> Record:
    figures = [*_figures(question, sums.normalized), *_figures(question, sums.raw)]
    return {"metrics": dict(zip(METRICS, figures, strict=True)), "normalized": sums.normalized, "raw": sums.raw}


def _figures(question: Question, scores: Sequence[float]) -> tuple[float, float, float]:
    """MC1, MC2 and MC3 from the log-scores of ``question.answers``."""
    score_of = dict(zip(question.answers, scores, strict=True))
    true, false = ([score_of[answer] for answer in answers] for answers in question.mc2)
    (best,), others = ([score_of[answer] for answer in answers] for answers in question.mc1)
    return mc1(best, others), mc2(true, false), mc3(true, false)
