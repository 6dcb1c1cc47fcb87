"""TruthfulQA's questions, from each of the forms in which they are published."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from decoding.errors import DecodingWarning, InputError, OptionError, nearest
from decoding.files import expanded
from decoding.rows import Row, documents, is_table, rows_of
from decoding.strategies.lol_guidance import GUIDANCE

__all__ = ["Question", "Targets", "check_languages", "closed", "load"]

LISTS = (
    "mc1_targets", "mc2_targets", "mc1_targets_choices", "mc2_targets_choices", "correct_answers", "incorrect_answers",
)  # fmt: skip
ANSWERS = ("best_answer", "correct_answers", "incorrect_answers")
BEST_INCORRECT = "best_incorrect_answer"


class Targets(NamedTuple):
    """Answers that a multiple-choice figure compares.

    Attributes:
        true: one for MC1 (the best answer), at least one for MC2 and MC3.
        false: at least one.
    """

    true: tuple[str, ...]
    false: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One question.

    An answer that the data list twice is kept twice, as in the published figures.

    Attributes:
        id: the data's own, or the row's number from 1.
        question: without space around it.
        best_answer: the true answer of MC1.
        correct_answers: true references for generated answers.
        incorrect_answers: false references for generated answers.
        mc1: best answer against false ones.
        mc2: true against false answers; MC3 uses the same.
        language: such as "en".
        best_incorrect_answer: the false answer of the binary choice; "" where it was not asked for.
        where: file and row that it comes from, for messages.
        columns: the columns of that row that hold true and false answers.
    """

    id: str
    question: str
    best_answer: str
    correct_answers: tuple[str, ...]
    incorrect_answers: tuple[str, ...]
    mc1: Targets
    mc2: Targets
    language: str = "en"
    best_incorrect_answer: str = ""
    where: str = field(default="", compare=False, repr=False)
    columns: tuple[str, str] = field(default=("", ""), compare=False, repr=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer whose score a multiple-choice figure needs, each once."""
        return tuple(dict.fromkeys((*self.mc1.true, *self.mc2.true, *self.mc1.false, *self.mc2.false)))


def load(
    source: str, language: str | None = None, skip_bad: bool = False, *, binary: bool = False
) -> tuple[list[Question], list[str]]:
    """Questions from a file, a folder or the hub.

    The forms are told apart by their columns:

    - ``TruthfulQA.csv`` (and the hub's ``generation`` configuration): best, correct and incorrect answers. Choices are
      made as the public scripts of TruthfulQA, DoLa and induced contrastive decoding make them: split at semicolons,
      stripped, each ended with a period. MC1 takes the best answer against all incorrect ones.
    - ``mc_task.json``, the translations of HiTZ, and the hub's ``multiple_choice``: ``mc1_targets`` and
      ``mc2_targets``, unchanged.
    - the translations of Okapi: ``mc1_targets_choices``, ``mc1_targets_labels``, and the same for ``mc2``; unchanged.

    Args:
        source: a file; a folder that holds one such file, or one whose name ends in the language; or a name on the hub,
            perhaps with a configuration: ``truthfulqa/truthful_qa:multiple_choice``. The language is the configuration
            where none is given.
        language: such as "es"; None takes it from the data, else from the end of the file's name, else "en".
        skip_bad: leave bad questions out instead of raising.
        binary: read the column ``Best Incorrect Answer`` too, which ``TruthfulQA.csv`` has since January 2025.

    Returns:
        The questions, and one line for each that was left out.

    Raises:
        InputError: no such data, or a bad row without ``skip_bad``: a missing column, no true or no false answer, an
            empty best answer, text that is not UTF-8; with ``binary`` no best incorrect answer, or one that is the best
            answer. The message names file, row and column.

    Example:
        >>> questions, left_out = load("TruthfulQA.csv")
    """
    rows, of_the_file = _rows(source, language)
    if binary and not any(BEST_INCORRECT in row.columns for row in rows):
        raise InputError(
            f"{source}: has no column Best Incorrect Answer, which the binary choice needs; the authors' "
            "TruthfulQA.csv has it since January 2025"
        )
    questions, bad = documents(rows, lambda row: _question(row, language or of_the_file, binary), skip_bad)
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f"{source}, column id: {question.id} is there twice; ids must differ")
        seen.add(question.id)
    blanks = [(row.number, row.columns[column]) for row in rows for column in LISTS if _lists_a_blank(row, column)]
    if blanks:
        numbers, columns = (", ".join(dict.fromkeys(map(str, items))) for items in zip(*blanks, strict=True))
        warnings.warn(
            f"{source}: empty answers, listed among others in rows {numbers} (columns {columns}), are left out",
            DecodingWarning,
            stacklevel=2,
        )
    return questions, bad


def check_languages(source: str, languages: Sequence[str]) -> None:
    """Refuse languages of ``--languages`` that a file or folder does not have by the names of its files.

    A file whose name tells no language is in any that is known.

    Args:
        source: as of :func:`load`.
        languages: codes.

    Raises:
        OptionError: says what is there.
    """
    path = expanded(source)
    files = _tables(path) if path.is_dir() else [path] if path.is_file() else []
    ends = {_language(file) for file in files}
    there = [language for language in GUIDANCE if language in ends]  # truthful_qa.csv ends in no language
    for language in languages if files else ():
        if language not in ends and there:
            raise OptionError(f"--languages {language}: --data {source} has no file of it; it has {', '.join(there)}")
        if language not in ends and language not in GUIDANCE:
            raise OptionError(f"--languages {language!r}{nearest(language, GUIDANCE)}")
    if len(files) == 1 and len(languages) > 1:
        raise OptionError(f"--languages {','.join(languages)}: --data {source} is one file; give its language alone")


def _tables(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if is_table(file) and file.is_file())


def closed(answer: str) -> str:
    """An answer with a period at its end, as in the public scripts' answers of the CSV."""
    return answer if answer.endswith(".") else f"{answer}."


def _rows(source: str, language: str | None) -> tuple[Sequence[Row], str | None]:
    """The rows of a source, and the language that its name ends in."""
    path = expanded(source)
    if path.is_dir():
        files = _tables(path)
        if len(files) > 1 and language is not None:
            files = [file for file in files if _language(file) == language] or files
        if len(files) > 1 and all(file.suffix == ".parquet" for file in files):
            return rows_of(source), None  # the splits of a data set, or parts of one
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise InputError(f"{source}: holds {names}; name one of these files, or a language that one name ends in")
        source, path = (str(files[0]), files[0]) if files else (source, path)
    if language is not None and not path.exists() and ":" in source:
        raise InputError(f"{source}: has a configuration already, and {language!r} would be another: give one of them")
    return rows_of(source, language), _language(path) if path.is_file() else None


def _language(path: Path) -> str | None:
    end = path.stem.replace("-", "_").rpartition("_")[2]
    return end if len(end) == 2 and end.isalpha() and end.islower() else None


def _question(row: Row, language: str | None, binary: bool) -> Question:
    question = row.text("question").strip()
    if "mc1_targets" in row or "mc2_targets" in row:
        mc1, mc2 = (_targets(row, name, *_choices(row, name)) for name in ("mc1_targets", "mc2_targets"))
        columns = ("mc2_targets", "mc2_targets")
    elif "mc1_targets_choices" in row or "mc2_targets_choices" in row:
        mc1, mc2 = (
            _targets(row, f"{name}_choices", row.value(f"{name}_choices"), row.value(f"{name}_labels"))
            for name in ("mc1_targets", "mc2_targets")
        )
        columns = ("mc2_targets_choices", "mc2_targets_choices")
    else:
        correct, incorrect = (
            tuple(closed(answer) for answer in _listed(row, name)) for name in ("correct_answers", "incorrect_answers")
        )
        mc1 = Targets((closed(row.text("best_answer").strip()),), incorrect)
        mc2 = Targets(correct, incorrect)
        columns = ("correct_answers", "incorrect_answers")
    if len(mc1.true) != 1:
        raise row.fault("mc1_targets", f"has {len(mc1.true)} true answers; expected one")
    if all(name in row for name in ANSWERS):
        best = row.text("best_answer").strip()
        correct, incorrect = _listed(row, "correct_answers"), _listed(row, "incorrect_answers")
    else:
        best, correct, incorrect = mc1.true[0], mc2.true, mc2.false
    best_incorrect = row.text(BEST_INCORRECT).strip() if binary else ""
    if best_incorrect == best:
        raise row.fault(BEST_INCORRECT, "is the best answer too")
    name, stated = row.fields.get("id"), row.fields.get("lang")
    return Question(
        str(row.number if name is None else name), question, best, correct, incorrect, mc1, mc2,
        language or (stated if isinstance(stated, str) else None) or "en", best_incorrect,
        row.where, (row.columns[columns[0]], row.columns[columns[1]]),
    )  # fmt: skip


def _choices(row: Row, column: str) -> tuple[Any, Any]:
    """Answers and labels of ``{"choices": [...], "labels": [...]}`` or ``{answer: label, ...}``."""
    targets = row.value(column)
    if not isinstance(targets, Mapping):
        raise row.fault(column, f"is {type(targets).__name__}, not an object of answers and labels")
    if isinstance(targets.get("choices"), list):
        return targets["choices"], targets.get("labels")
    return list(targets), list(targets.values())


def _targets(row: Row, column: str, choices: Any, labels: Any) -> Targets:
    if not isinstance(choices, list) or not isinstance(labels, list) or len(choices) != len(labels):
        raise row.fault(column, "has not as many labels as answers; expected two lists of one length")
    strange = next((label for label in labels if label not in (0, 1)), None)
    if strange is not None:
        raise row.fault(column, f"has the label {strange!r}; labels must be 1 (true) or 0 (false)")
    true, false = (
        _full(row, column, [choice for choice, label in zip(choices, labels, strict=True) if label == wanted])
        for wanted in (1, 0)
    )
    if not true or not false:
        raise row.fault(column, f"has no {'false' if true else 'true'} answer")
    return Targets(true, false)


def _listed(row: Row, column: str) -> tuple[str, ...]:
    """The answers of a column: a list, or text with semicolons between."""
    value = row.value(column)
    answers = value if isinstance(value, list) else row.text(column).split(";")
    listed = tuple(answer.strip() for answer in _full(row, column, answers))
    if not listed:
        raise row.fault(column, "has no answer")
    return listed


def _full(row: Row, column: str, answers: Sequence[Any]) -> tuple[str, ...]:
    """The answers without empty ones, which come from a list of the CSV that ends in a semicolon."""
    return tuple(row.checked(column, answer, "an answer") for answer in answers if not _blank(answer))


def _blank(answer: Any) -> bool:
    return isinstance(answer, str) and not answer.strip()


def _lists_a_blank(row: Row, column: str) -> bool:
    listed = row.fields.get(column)
    listed = listed.get("choices", listed) if isinstance(listed, Mapping) else listed
    return isinstance(listed, (list, Mapping)) and any(map(_blank, listed))
