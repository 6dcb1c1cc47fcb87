"""TruthfulQA in miniature: the embedded world's questions, and the strategies that are compared on them."""

from __future__ import annotations

from decoding.evals import miniature
from decoding.evals.tasks.truthfulqa.data import Question, Targets

__all__ = ["GRIDS", "STRATEGIES", "questions"]

GRIDS = (
    "greedy",
    "contrastive-decoding:amateur=amateur",
    "contrastive-decoding:amateur=induced,form=log_probs",
    "dola:layers=low|high|1,2,3,alpha=0.0|0.1",
    f"context-aware:context={miniature.GUIDANCE}",
    "lol:amateur=induced,lower_layers=1|2|3",
    f"lol:amateur=induced,lower_layers=1|2|3,guidance={miniature.GUIDANCE}",
)
"""The strategies whose values ``decoding tune truthfulqa --miniature`` chooses."""

STRATEGIES = (
    "greedy",
    "contrastive-decoding:amateur=amateur",
    "contrastive-decoding:amateur=induced,form=log_probs,beta=1.0,alpha=0.0",
    "dola",
    f"context-aware:context={miniature.GUIDANCE}",
    "lol:amateur=induced,lower_layers=0.5,0.75",
    f"lol:amateur=induced,lower_layers=0.5,0.75,guidance={miniature.GUIDANCE}",
)
"""The same with untuned values: the library's and, for the induced contrast, its authors'."""


def questions(split: str) -> list[Question]:
    """The questions of a split, "validation" or "test", in TruthfulQA's form."""
    return [
        Question(
            item.id,
            item.question,
            item.best_answer,
            item.correct_answers,
            item.incorrect_answers,
            Targets((item.best_answer,), item.incorrect_answers),
            Targets(item.correct_answers, item.incorrect_answers),
            best_incorrect_answer=item.incorrect_answers[0],  # the popular one
        )
        for item in miniature.questions(split)
    ]
