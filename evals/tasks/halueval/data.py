"""HaluEval's documents, from each of its four files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from decoding.errors import InputError
from decoding.rows import Row, documents, rows_of

__all__ = ["KINDS", "PROMPTS", "Kind", "Responses", "load"]

PROMPTS = ("plain", "halueval")


@dataclass(frozen=True)
class Kind:
    """The form of one of HaluEval's files.

    Attributes:
        source: the column of what the texts answer.
        texts: the columns of the right text and the hallucinated one; of the general file, of its one text and of
            "yes" or "no": whether that is hallucinated.
        labels: what the authors' evaluation calls a source and a text in its prompts.
        source_is_cut: whether a prompt that is too long loses the end of its source, and not its own beginning.
    """

    source: str
    texts: tuple[str, str]
    labels: tuple[str, str]
    source_is_cut: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row of such a file has."""
        return (self.source, *self.texts)


KINDS = {
    "qa": Kind("question", ("right_answer", "hallucinated_answer"), ("Question", "Answer")),
    "dialogue": Kind("dialogue_history", ("right_response", "hallucinated_response"), ("Dialogue History", "Response")),
    # The authors cut documents at their end too, for models with a short context.
    "summarization": Kind("document", ("right_summary", "hallucinated_summary"), ("Document", "Summary"), True),
    "general": Kind("user_query", ("chatgpt_response", "hallucination"), ("Question", "Answer")),
}


@dataclass(frozen=True)
class Responses:
    """One document of HaluEval: a source, and texts that answer, continue or summarise it.

    Attributes:
        id: the row's number from 1 (the ids of ``general_data.json`` are not unique).
        kind: a key of ``KINDS``.
        source: a question, the turns of a dialogue, or a document; as in the data.
        knowledge: what a right text can be told from; "" where the data have none.
        right: texts without hallucination.
        hallucinated: texts with hallucination. The general file has one text in all, the others one of each.
        where: file and row that they come from, for messages.
    """

    id: str
    kind: str
    source: str
    knowledge: str
    right: tuple[str, ...]
    hallucinated: tuple[str, ...]
    where: str = field(default="", compare=False)

    def prompt(self, knowledge: bool, style: str = "plain") -> str:
        """The prompt before the texts.

        The fields, their names and their order are those of the authors' evaluation; the knowledge before them, which
        it leaves out, has the name that it has where they generate data. Their instruction asks for a verdict on the
        text, which nobody gives here, and is left out.

        Args:
            knowledge: whether the knowledge comes first, where there is any.
            style: "halueval" writes names as the authors do (``#Question#: ...``), "plain" without their marks.
        """
        mark = "#" if style == "halueval" else ""
        fields = [("Knowledge", self.knowledge)] if knowledge and self.knowledge else []
        fields.append((KINDS[self.kind].labels[0], self.source))
        return "".join(f"{mark}{name}{mark}: {text}\n" for name, text in fields) + self.text_label(style)

    def text_label(self, style: str = "plain") -> str:
        """The end of the prompt, which names the text that follows."""
        mark = "#" if style == "halueval" else ""
        return f"{mark}{KINDS[self.kind].labels[1]}{mark}:"


def load(source: str, kind: str | None = None, skip_bad: bool = False) -> tuple[list[Responses], list[str]]:
    """HaluEval's documents, and one line for each that was left out.

    Args:
        source: ``qa_data.json`` (or ``qa_one-turn_data.json``), ``dialogue_data.json``, ``summarization_data.json`` or
            ``general_data.json``: a file, or a hub name.
        kind: which of ``KINDS`` it is; None finds it out by the columns.
        skip_bad: leave bad rows out instead of raising.

    Raises:
        InputError: no such data; columns of none of the files; a bad row without ``skip_bad``, named by file, row and
            column.
    """
    rows = rows_of(source)
    name = kind or _kind_of(source, rows)
    return documents(rows, lambda row: _responses(row, name), skip_bad)


def _kind_of(source: str, rows: Sequence[Row]) -> str:
    """The kind with the most columns in the data."""
    columns = {name: row.columns[name] for row in rows for name in row.fields}
    found = max(KINDS, key=lambda name: len(columns.keys() & set(KINDS[name].columns)))
    if columns.keys().isdisjoint(KINDS[found].columns):
        expected = "; ".join(f"{name}: {', '.join(kind.columns)}" for name, kind in KINDS.items())
        raise InputError(f"{source}: has the columns {', '.join(columns.values())}; expected those of {expected}")
    return found


def _responses(row: Row, name: str) -> Responses:
    kind = KINDS[name]
    source, first, second = (row.text(column) for column in kind.columns)
    right: tuple[str, ...]
    hallucinated: tuple[str, ...]
    right, hallucinated = (first,), (second,)
    if name == "general":
        verdict = second.strip().lower()
        if verdict not in ("yes", "no"):
            raise row.fault(kind.texts[1], f"is {verdict!r}; must be yes or no")
        right, hallucinated = ((), (first,)) if verdict == "yes" else ((first,), ())
    return Responses(
        str(row.number), name, source, row.first_text(("knowledge",)) or "", right, hallucinated, row.where
    )
