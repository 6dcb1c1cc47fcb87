"""Questions with a context that contradicts a model's memory, from files, from the hub, or embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from decoding.errors import InputError
from decoding.evals.miniature.conflicts import conflicts
from decoding.rows import Row, documents, rows_of

__all__ = ["FACTS", "Columns", "ConflictQuestion", "load", "miniature_questions"]

FACTS = "facts"  # the name of the embedded file
EMBEDDED = {FACTS: Path(__file__).with_name("facts.jsonl")}


@dataclass(frozen=True)
class Columns:
    """The names of a format's columns.

    Attributes:
        documents: the documents that contradict the memory: one text, or a list.
        answer: what they say: text, or a list of forms, the first of which is scored.
        memory: what a model remembers, likewise.
        agreeing: documents that agree with the memory; optional.
        others: further wrong answers, a list or text with semicolons between; optional.
    """

    documents: str
    answer: str
    memory: str
    agreeing: str
    others: str = "others"


PLAIN = Columns("context", "answer", "memory", "agreeing_context")
NQ_SWAP = Columns("sub_context", "sub_answer", "org_answer", "org_context")  # Longpre et al. 2021, as on the hub


@dataclass(frozen=True)
class ConflictQuestion:
    """One question, with documents that contradict the memory and perhaps with documents that agree with it.

    Attributes:
        id: the data's own, or the row's number from 1.
        question: without space around it.
        answers: forms of the answer that the documents give, at least one; the first is scored.
        memory: forms of the answer that a model remembers, likewise.
        others: further wrong answers, of neither.
        documents: texts that contradict the memory, at least one.
        agreeing: texts that agree with it; none where the data have none.
        where: file and row that it comes from, for messages.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    memory: tuple[str, ...]
    others: tuple[str, ...]
    documents: tuple[str, ...]
    agreeing: tuple[str, ...] = ()
    where: str = field(default="", compare=False)

    @property
    def candidates(self) -> list[str]:
        """The answers that are scored: the context's, the memory's, then the others."""
        return [self.answers[0], self.memory[0], *self.others]

    @property
    def content(self) -> list[object]:
        """JSON-able, all that decides figures."""
        return [self.question, self.answers, self.memory, self.others, self.documents, self.agreeing]


def load(source: str, skip_bad: bool = False) -> tuple[list[ConflictQuestion], list[str]]:
    """Questions, and one line for each row that was left out.

    Args:
        source: a file, a folder or a hub name with the columns of ``PLAIN``, or those of NQ-Swap; or ``FACTS``, the
            embedded file.
        skip_bad: leave bad rows out instead of raising.

    Raises:
        InputError: no such data; a bad row without ``skip_bad``, named by file, row and column: a missing column, an
            empty text, an answer that is the memory's too; or agreeing documents in some rows only.
    """
    rows = rows_of(str(EMBEDDED.get(source, source)))
    swapped = any(NQ_SWAP.documents in row.columns for row in rows)
    columns = NQ_SWAP if swapped else PLAIN
    questions, bad = documents(rows, lambda row: _question(row, columns), skip_bad)
    lacking = next((question for question in questions if not question.agreeing), None)
    if lacking is not None and any(question.agreeing for question in questions):
        raise InputError(
            f"{lacking.where}, column {columns.agreeing}: is missing, and other rows have it; give it in all rows or "
            "in none"
        )
    return questions, bad


def miniature_questions(split: str, documents: int = 1, contradicting: bool = False) -> list[ConflictQuestion]:
    """The embedded world's questions; see :func:`decoding.evals.miniature.conflicts.conflicts`."""
    return [
        ConflictQuestion(
            item.id, item.question, item.answers, item.memory, item.others, item.conflicting, item.agreeing
        )
        for item in conflicts(split, documents=documents, contradicting=contradicting)
    ]


def _question(row: Row, columns: Columns) -> ConflictQuestion:
    answers, memory = (_texts(row, column) for column in (columns.answer, columns.memory))
    if set(answers) & set(memory):
        raise row.fault(columns.answer, f"has {next(iter(set(answers) & set(memory)))!r}, which the memory has too")
    others = _texts(row, columns.others, split=True) if columns.others in row else ()
    name = row.fields.get("id")
    return ConflictQuestion(
        str(row.number if name is None else name),
        row.text("question").strip(),
        answers,
        memory,
        tuple(text for text in others if text not in (*answers, *memory)),
        _texts(row, columns.documents),
        _texts(row, columns.agreeing) if columns.agreeing in row else (),
        row.where,
    )


def _texts(row: Row, column: str, split: bool = False) -> tuple[str, ...]:
    """The texts of a column: a list, or one text, perhaps with semicolons between several."""
    value = row.value(column)
    if not isinstance(value, Sequence) or isinstance(value, str):
        value = row.text(column).split(";") if split else [row.text(column)]
    texts = tuple(row.checked(column, text, "a text" if len(value) > 1 else "").strip() for text in value)
    if not texts:
        raise row.fault(column, "has no text")
    return texts
