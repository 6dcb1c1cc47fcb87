"""Hallucinated answers to train on: HaluEval's files, and any table with questions and wrong answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from decoding.errors import InputError
from decoding.rows import Row, read_rows

__all__ = ["Example", "read_examples"]

QUESTIONS = ("question", "user_query", "prompt", "instruction", "query")
# The wrong answer where a record names one; else its only answer, which a flag may mark as right or wrong.
WRONG = ("hallucinated_answer", "incorrect_answer", "wrong_answer")
ANSWERS = ("chatgpt_response", "response", "answer", "output", "completion")
FLAG = "hallucination"  # "yes" or "no": HaluEval's general file


@dataclass(frozen=True)
class Example:
    """A question and the answer to train on, which should be wrong."""

    question: str
    answer: str


def read_examples(path: str | Path) -> list[Example]:
    """The hallucinated answers of a file, in its order.

    A file is JSON lines, a JSON list, CSV or parquet. Its rows have a question (``question``, ``user_query``,
    ``prompt``, ``instruction`` or ``query``) and a hallucinated answer (``hallucinated_answer``, ``incorrect_answer``
    or ``wrong_answer``; else ``chatgpt_response``, ``response``, ``answer``, ``output`` or ``completion``). Rows with
    ``"hallucination": "no"`` are left out. HaluEval's QA and general files are of this form.

    Args:
        path: the file.

    Raises:
        InputError: the file cannot be read, or a row has another form; names the row.
    """
    path = Path(path)
    examples = [example for row in read_rows(path) if (example := _example(row)) is not None]
    if not examples:
        raise InputError(f"{path}: holds no hallucinated answer")
    return examples


def _example(row: Row) -> Example | None:
    if str(row.fields.get(FLAG, "yes")).strip().lower() in ("no", "false"):
        return None
    question, answer = row.first_text(QUESTIONS), row.first_text((*WRONG, *ANSWERS))
    if question is None or answer is None:
        missing, columns = ("question", QUESTIONS) if question is None else ("hallucinated answer", (*WRONG, *ANSWERS))
        raise InputError(
            f"{row.where}: has no {missing}; the row has {row.filled}; expected one of {', '.join(columns)}"
        )
    return Example(question.strip(), answer.strip())
