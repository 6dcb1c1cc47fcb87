"""TruthfulQA's multiple choice: MC1, MC2 and MC3 of strategies, from the log-scores of whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.errors import InputError
from decoding.evals.engine.configurations import Configuration, digest
from decoding.evals.engine.task import Document, GroupTask, Record
from decoding.evals.metrics.multiple_choice import mc1, mc2, mc3
from decoding.evals.tasks.likelihood import scoring_strategy, shortened
from decoding.evals.tasks.truthfulqa.data import Question
from decoding.evals.tasks.truthfulqa.prompts import Prompt, common_beginning
from decoding.models.inputs import context_of
from decoding.scoring.score import tokens_of
from decoding.scoring.scorer import TOKENS_AT_ONCE, Scorer

__all__ = ["METRICS", "MultipleChoice"]

METRICS = ("MC1", "MC2", "MC3", "MC1 raw", "MC2 raw", "MC3 raw")
"""Normalised: from the log-softmax of a strategy's scores. Raw: from its unchanged scores."""

# In a forward pass: about 30 of a question and 100 of its answers, less their common tokens. So four questions are read
# together, and a kill loses them. One at a time took 1.61 times as long on the embedded expert (7 strategies), two
# 1.28 times; on a Llama of 8 layers x 512, 1.08 times and as long (2 cores). Eight were no faster.
TOKENS_A_QUESTION = 128


class MultipleChoice(GroupTask):
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
        self.model = model
        self.tokenizer = tokenizer
        self.questions = list(questions)
        self.prompt = prompt
        self.skipped = left_out
        self.name = name
        self.max_branch_tokens = max_branch_tokens or TOKENS_AT_ONCE
        self.group_size = batch_size or max(1, self.max_branch_tokens // TOKENS_A_QUESTION)
        self.settings = {
            "prompt": prompt.settings,
            "languages": sorted({question.language for question in self.questions}),
            "questions": digest([[question.question, question.mc1, question.mc2] for question in self.questions]),
        }
        self._scorer: Scorer | None = None
        self._scored: list[str] = []  # hashes of the configurations that the scorer is for
        self._prefix: list[int] | None = None

    @property
    def figures(self) -> tuple[str, ...]:
        """The metrics to show."""
        return METRICS

    def documents(self) -> list[Document]:
        """The questions."""
        return [Document(question.id, question, question.where) for question in self.questions]

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> list[list[Record]]:
        """The figures of several questions, read together.

        Raises:
            InputError: an answer longer than a reader's context.
        """
        questions = [document.content for document in documents]
        scorer = self._scorer_of(configurations)
        requests = []
        for question in questions:
            before, after = self._tokens(question)
            self._check_length(question, len(before), after)
            requests.append((before[len(scorer.prefix) :], after))
        records: list[list[Record]] = []
        for question, by_strategy in zip(questions, scorer.score(requests), strict=True):
            records.append([])
            for scores in by_strategy:
                normalized = [answer.normalized.double().sum().item() for answer in scores]
                raw = [answer.raw.double().sum().item() for answer in scores]
                metrics = dict(zip(METRICS, [*_figures(question, normalized), *_figures(question, raw)], strict=True))
                records[-1].append({"metrics": metrics, "normalized": normalized, "raw": raw})
        return records

    def release(self) -> None:
        """Free the caches."""
        if self._scorer is not None:
            self._scorer.release()
        self._scorer, self._scored = None, []

    def _tokens(self, question: Question) -> tuple[list[int], list[list[int]]]:
        return tokens_of(
            self.prompt.text(question.question),
            [self.prompt.answer(answer) for answer in question.answers],
            self.tokenizer,
            self.prompt.special_tokens,
        )

    def _check_length(self, question: Question, prompt: int, after: Sequence[Sequence[int]]) -> None:
        context = context_of(self.model)
        for answer, tokens in zip(question.answers, after, strict=True):
            if context is not None and prompt + len(tokens) > context:
                column = question.columns[answer not in question.mc2.true]
                raise InputError(
                    (f"column {column}: " if column else "") + f"the answer {shortened(answer)!r} has {len(tokens)} "
                    f"tokens and its prompt {prompt}, which is more than the model's context of {context}"
                )

    def _scorer_of(self, configurations: Sequence[Configuration]) -> Scorer:
        """The scorer of these configurations; the last one is kept, with its cache of the prompt."""
        hashes = [configuration.hash for configuration in configurations]
        if self._scorer is None or hashes != self._scored:
            self.release()
            self._scorer = Scorer(
                self.model,
                self._common(),
                [scoring_strategy(configuration.spec) for configuration in configurations],
                tokenizer=self.tokenizer,
                max_branch_tokens=self.max_branch_tokens,
            )
            self._scored = hashes
        return self._scorer

    def _common(self) -> list[int]:
        """The tokens that every prompt begins with."""
        if self._prefix is None:
            texts = [self.prompt.text(question.question) for question in self.questions]
            ids = self.tokenizer(texts, add_special_tokens=self.prompt.special_tokens)["input_ids"]
            self._prefix = common_beginning(ids)
        return self._prefix


def _figures(question: Question, scores: Sequence[float]) -> tuple[float, float, float]:
    """MC1, MC2 and MC3 from the log-scores of ``question.answers``."""
    score_of = dict(zip(question.answers, scores, strict=True))
    true, false = ([score_of[answer] for answer in answers] for answers in question.mc2)
    (best,), others = ([score_of[answer] for answer in answers] for answers in question.mc1)
    return mc1(best, others), mc2(true, false), mc3(true, false)
