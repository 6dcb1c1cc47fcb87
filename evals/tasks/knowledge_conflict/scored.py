"""Knowledge conflicts by likelihood: which of the candidate answers does a strategy score highest?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.task import Document
from decoding.evals.tasks.knowledge_conflict.question_task import Answer, ConflictTask
from decoding.evals.tasks.likelihood import Likelihood, likelihoods

__all__ = ["ScoredConflicts"]


class ScoredConflicts(ConflictTask):
    """Knowledge conflicts as a choice between the context's answer, the memory's and others.

    The answer is the candidate whose summed log-score is strictly above that of every other one. ``/token``: by the
    mean over its tokens. ``raw``: by a strategy's scores without the log-softmax.

    Args:
        others: the arguments of :class:`ConflictTask`; the model is decoder-only.
    """

    ways = ("", "/token", " raw", "/token raw")

    def __init__(self, *others: Any, **named: Any) -> None:
        super().__init__(*others, **named)
        guessed = sum(1 / len(question.candidates) for question in self.questions) / len(self.questions)
        names = ("faithful", "memorised", *(("agreeing",) if self.has_control else ()))
        self.chance = {f"{name}{way}": guessed for name in names for way in self.ways}

    @property
    def figures(self) -> tuple[str, ...]:
        """The metrics to show."""
        return ("faithful", "memorised", "MR", *(("agreeing", "both") if self.has_control else ()), "MR raw")

    def answers(
        self, document: Document, texts: Sequence[str], configurations: Sequence[Configuration]
    ) -> list[Answer]:
        """The candidates that score highest; configurations with one prompt are read together."""
        asked = self.asked(document.content, texts, configurations)
        candidates = [self.prompt.answer(text) for text in document.content.candidates]
        scored: dict[int, Answer] = {}
        for prompt in dict.fromkeys(prompt for prompt, _ in asked):
            same = [index for index, (other, _) in enumerate(asked) if other == prompt]
            results = likelihoods(
                [asked[index][1] for index in same], self.model, self.tokenizer, prompt, candidates,
                special_tokens=self.prompt.special_tokens, cut=False,
            )  # fmt: skip
            scored |= {index: self._answer(sums) for index, (sums, _) in zip(same, results, strict=True)}
        return [scored[index] for index in range(len(asked))]

    def _answer(self, sums: Sequence[Likelihood]) -> Answer:
        return Answer(
            {way: _highest([likelihood.figures()[way] for likelihood in sums]) for way in self.ways},
            {
                "normalized": [likelihood.normalized for likelihood in sums],
                "raw": [likelihood.raw for likelihood in sums],
                "tokens": [likelihood.tokens for likelihood in sums],
            },
        )


def _highest(scores: Sequence[float]) -> tuple[bool, bool]:
    """Return whether the first score is strictly above all others, and whether the second is."""
    first, second, *others = scores
    return first > max(second, *others), second > max(first, *others)
