"""Hallucinated answers to train on: HaluEval's files, and any JSON or JSON lines with questions and wrong answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding.errors import InputError

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

    A file holds JSON lines (whatever its ending) or a JSON list, of records with a question (``question``,
    ``user_query``, ``prompt``, ``instruction`` or ``query``) and a hallucinated answer (``hallucinated_answer``,
    ``incorrect_answer`` or ``wrong_answer``; else ``chatgpt_response``, ``response``, ``answer``, ``output`` or
    ``completion``). Records with ``"hallucination": "no"`` are left out. HaluEval's QA and general files are of this
    form.

    Args:
        path: the file.

    Raises:
        InputError: the file cannot be read, or a record has another form; names the record.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    examples = []
    for where, record in _records(path, text):
        example = _example(path, where, record)
        if example is not None:
            examples.append(example)
    if not examples:
        raise InputError(f"{path}: holds no hallucinated answer")
    return examples


def _records(path: Path, text: str) -> Iterable[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            return [(f"record {i}", record) for i, record in enumerate(json.loads(text), start=1)]
        except ValueError as error:
            raise InputError(f"{path}: is no JSON list ({error})") from error
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                records.append((f"line {number}", json.loads(line)))
            except ValueError as error:
                raise InputError(f"{path}, line {number}: is no JSON ({error})") from error
    return records


def _example(path: Path, where: str, record: Any) -> Example | None:
    if not isinstance(record, dict):
        raise InputError(f"{path}, {where}: is no record; expected an object with a question and an answer")
    if str(record.get(FLAG, "yes")).strip().lower() in ("no", "false"):
        return None
    question, answer = _first(record, QUESTIONS), _first(record, (*WRONG, *ANSWERS))
    if question is None or answer is None:
        missing, keys = ("question", QUESTIONS) if question is None else ("hallucinated answer", (*WRONG, *ANSWERS))
        raise InputError(
            f"{path}, {where}: has no {missing}; its keys are {', '.join(map(str, record))}; "
            f"expected one of {', '.join(keys)}"
        )
    return Example(question.strip(), answer.strip())


def _first(record: dict[str, Any], names: Iterable[str]) -> str | None:
    texts = (record[name] for name in names if isinstance(record.get(name), str) and record[name].strip())
    return next(texts, None)
