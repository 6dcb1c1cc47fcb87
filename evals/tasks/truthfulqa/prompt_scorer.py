"""Log-scores of answers to prompts that begin alike, whose common beginning is read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from decoding.errors import InputError
from decoding.evals.engine.configurations import Configuration
from decoding.evals.tasks.likelihood import scoring_strategy, shortened
from decoding.evals.tasks.truthfulqa.prompts import Prompt, common_beginning
from decoding.models.inputs import context_of
from decoding.scoring.score import tokens_of
from decoding.scoring.scorer import TOKENS_AT_ONCE, Scorer

__all__ = ["TOKENS_A_QUESTION", "Asked", "PromptScorer", "Sums", "questions_at_once"]

# In a forward pass: about 30 of a question and 100 of its answers, less their common tokens. So four questions are read
# together, and a kill loses them. One at a time took 1.61 times as long on the embedded expert (7 strategies), two
# 1.28 times; on a Llama of 8 layers x 512, 1.08 times and as long (2 cores). Eight were no faster.
TOKENS_A_QUESTION = 128


class Asked(NamedTuple):
    """A question and its answers in tokens: ``prompt`` (length,) and one list an answer."""

    prompt: list[int]
    answers: list[list[int]]


class Sums(NamedTuple):
    """The log-scores of each answer, summed over its tokens in float64: of the log-softmax, and as they are."""

    normalized: list[float]
    raw: list[float]


def questions_at_once(max_branch_tokens: int | None) -> int:
    """The number of questions that probably fit into a forward pass of so many tokens."""
    return max(1, (max_branch_tokens or TOKENS_AT_ONCE) // TOKENS_A_QUESTION)


class PromptScorer:
    """The scorer of prompts of one form; the cache of what they have in common is kept between calls.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        prompt: the form of the prompts.
        questions: all that will be asked, which decide what the prompts have in common.
        max_branch_tokens: as in :class:`decoding.Scorer`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompt: Prompt, questions: Sequence[str], max_branch_tokens: int | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.questions = questions
        self.max_branch_tokens = max_branch_tokens or TOKENS_AT_ONCE
        self._scorer: Scorer | None = None
        self._scored: list[str] = []  # hashes of the configurations that the scorer is for
        self._prefix: list[int] | None = None

    def asked(self, question: str, answers: Sequence[str], columns: Sequence[str]) -> Asked:
        """A question and its answers in tokens.

        Args:
            question: one of ``questions``.
            answers: at least one.
            columns: of the data, that of each answer, for the message; "" for none.

        Raises:
            InputError: an answer and its prompt are longer than the model's context.
        """
        asked = Asked(
            *tokens_of(
                self.prompt.text(question),
                [self.prompt.answer(answer) for answer in answers],
                self.tokenizer,
                self.prompt.special_tokens,
            )
        )
        context, length = context_of(self.model), len(asked.prompt)
        for answer, column, tokens in zip(answers, columns, asked.answers, strict=True):
            if context is not None and length + len(tokens) > context:
                raise InputError(
                    (f"column {column}: " if column else "") + f"the answer {shortened(answer)!r} has {len(tokens)} "
                    f"tokens and its prompt {length}, which is more than the model's context of {context}"
                )
        return asked

    def score(self, configurations: Sequence[Configuration], asked: Sequence[Asked]) -> list[list[Sums]]:
        """For each question and each configuration the sums of its answers; questions are read together."""
        scorer = self._scorer_of(configurations)
        requests = [(question.prompt[len(scorer.prefix) :], question.answers) for question in asked]
        return [
            [
                Sums(
                    [answer.normalized.double().sum().item() for answer in scores],
                    [answer.raw.double().sum().item() for answer in scores],
                )
                for scores in by_strategy
            ]
            for by_strategy in scorer.score(requests)
        ]

    def release(self) -> None:
        """Free the caches."""
        if self._scorer is not None:
            self._scorer.release()
        self._scorer, self._scored = None, []

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
            texts = [self.prompt.text(question) for question in self.questions]
            ids = self.tokenizer(texts, add_special_tokens=self.prompt.special_tokens)["input_ids"]
            self._prefix = common_beginning(ids)
        return self._prefix
