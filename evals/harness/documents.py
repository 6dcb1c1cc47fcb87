"""What the task files in ``tasks/`` call: their documents, and MC2 that does not underflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from decoding.errors import InputError
from decoding.evals import miniature
from decoding.loading import one_line

__all__ = ["mc2", "miniature_documents", "read_questions", "truthfulqa_documents"]

Document = dict[str, Any]


def truthfulqa_documents(truthfulqa: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The questions of a local TruthfulQA file in the columns that lm-eval's own tasks expect.

    Args:
        truthfulqa: the file; lm-eval hands over what ``--metadata`` gives.

    Raises:
        InputError: no file given, or see :func:`read_questions`.
    """
    if truthfulqa is None:
        raise InputError(
            "this task needs a file of questions: decoding lm-eval --truthfulqa FILE, or --metadata truthfulqa=FILE"
        )
    return {"validation": Dataset.from_list(read_questions(Path(truthfulqa)))}


def miniature_documents(**_: Any) -> dict[str, Dataset]:
    """The embedded miniature's questions: ``test``, and ``validation`` to choose hyper-parameters on."""
    return {split: Dataset.from_list(_miniature(split)) for split in miniature.SPLITS}


def read_questions(path: Path) -> list[Document]:
    """The questions of ``mc_task.json``, or of a translation of the same form, in the hub data set's columns.

    The file is none for the ``json`` builder of ``datasets``: answers are keys of an object there, of which the builder
    would make a column each.

    Raises:
        InputError: the file cannot be read, or a question has no true or no false answer.
    """
    try:
        rows = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: accepted is a JSON list of questions")
    return [_document(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def mc2(doc: Document, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Share of the true answers in the probability of all answers.

    lm-eval's own function exponentiates the log-likelihoods as they are. Under a plausibility mask they are below -745
    as a rule, where float64 has only zeros: 0/0 for the question, and NaN for the task.

    Args:
        doc: a question; ``mc2_targets`` has ``labels``.
        results: log-likelihood of each answer, and whether it is the greedy one.
    """
    scores = np.array([score for score, _ in results])
    weights = np.exp(scores - scores.max())
    true = np.array(doc["mc2_targets"]["labels"]) == 1
    return {"acc": float(weights[true].sum() / weights.sum())}


def _document(row: Any, where: str) -> Document:
    if not isinstance(row, Mapping) or not isinstance(row.get("question"), str):
        raise InputError(f"{where}: has no question")
    targets = {name: _targets(row.get(name), f"{where}, column {name}") for name in ("mc1_targets", "mc2_targets")}
    true, false = (
        [choice for choice, label in zip(*targets["mc2_targets"].values(), strict=True) if label == wanted]
        for wanted in (1, 0)
    )
    return {"question": row["question"], **targets, "correct_answers": true, "incorrect_answers": false}


def _targets(given: Any, where: str) -> dict[str, list[Any]]:
    """Answers and labels of ``{answer: label, ...}`` or ``{"choices": [...], "labels": [...]}``."""
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: is missing; accepted are answers with labels, 1 for true and 0 for false")
    choices, labels = (
        (given["choices"], given.get("labels"))
        if isinstance(given.get("choices"), list)
        else (list(given), list(given.values()))
    )
    if not isinstance(labels, list) or len(choices) != len(labels) or not {0, 1} == set(labels):
        raise InputError(f"{where}: accepted are true (1) and false (0) answers, at least one of each")
    return {"choices": choices, "labels": labels}


def _miniature(split: str) -> list[Document]:
    documents = []
    for each in miniature.questions(split):
        true, false = list(each.correct_answers), list(each.incorrect_answers)
        documents.append(
            {
                "question": each.question,
                "mc1_targets": {"choices": [each.best_answer, *false], "labels": [1] + [0] * len(false)},
                "mc2_targets": {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)},
                "correct_answers": true,
                "incorrect_answers": false,
            }
        )
    return documents
