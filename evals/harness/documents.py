"""Functions that the task files in ``tasks/`` call: their documents, and MC2 that does not underflow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset

from decoding.errors import InputError
from decoding.evals import miniature
from decoding.evals.metrics import multiple_choice as metrics
from decoding.evals.tasks.truthfulqa.data import Question, Targets, load
from decoding.evals.tasks.truthfulqa.miniature import questions

__all__ = ["mc2", "miniature_documents", "truthfulqa_documents"]

Document = dict[str, Any]


def truthfulqa_documents(truthfulqa: str | None = None, **_: Any) -> dict[str, Dataset]:
    """TruthfulQA's questions in the columns that lm-eval's own tasks expect.

    Args:
        truthfulqa: a file in any form that :func:`decoding.evals.tasks.truthfulqa.data.load` reads; lm-eval passes it
            on from ``--metadata``.

    Raises:
        InputError: no file given, or one that cannot be read.
    """
    if truthfulqa is None:
        raise InputError(
            "this task needs a file of questions: decoding lm-eval --truthfulqa FILE, or --metadata truthfulqa=FILE"
        )
    return {"validation": _dataset(load(truthfulqa)[0])}


def miniature_documents(**_: Any) -> dict[str, Dataset]:
    """The embedded miniature's questions: ``test``, and ``validation`` to choose hyper-parameters on."""
    return {split: _dataset(questions(split)) for split in miniature.SPLITS}


def mc2(doc: Document, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """MC2 in log space.

    lm-eval's own function takes the exponential of the log-likelihoods. Under a plausibility mask they are usually
    below -745, where float64 has only zeros: 0/0 for the question, and NaN for the task.

    Args:
        doc: a question; ``mc2_targets`` has ``labels``.
        results: log-likelihood of each answer, and whether it is the greedy one.
    """
    labelled = list(zip(doc["mc2_targets"]["labels"], results, strict=True))
    true, false = ([score for label, (score, _) in labelled if label == wanted] for wanted in (1, 0))
    return {"acc": metrics.mc2(true, false)}


def _dataset(questions: Iterable[Question]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "question": question.question,
                "mc1_targets": _choices(question.mc1),
                "mc2_targets": _choices(question.mc2),
                "correct_answers": list(question.correct_answers),
                "incorrect_answers": list(question.incorrect_answers),
            }
            for question in questions
        ]
    )


def _choices(targets: Targets) -> dict[str, list[Any]]:
    """Answers and labels in the hub's form; the true answers come first."""
    return {
        "choices": [*targets.true, *targets.false],
        "labels": [1] * len(targets.true) + [0] * len(targets.false),
    }
