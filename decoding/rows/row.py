"""One row of data, whatever file it comes from; messages name file, row and column."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from decoding.errors import InputError

__all__ = ["Row", "documents", "row_of"]

Document = TypeVar("Document")


@dataclass(frozen=True)
class Row:
    """One row of a data file.

    Columns are found whatever their case, and with ``_`` for spaces: ``Best Answer`` is ``best_answer``.

    Attributes:
        file: the file or hub name, as messages call it.
        number: from 1; a CSV's header is not counted.
        line: of the file, from 1, where rows have lines of their own.
        fields: values by column name in lower case with ``_`` for spaces.
        columns: the names as the file has them, by those of ``fields``.
    """

    file: str
    number: int
    line: int | None
    fields: Mapping[str, Any]
    columns: Mapping[str, str]

    def __contains__(self, column: str) -> bool:
        return self.fields.get(_key(column)) is not None

    @property
    def where(self) -> str:
        """File and row, as messages name them."""
        return f"{self.file}, row {self.number}" + (f" (line {self.line})" if self.line is not None else "")

    @property
    def filled(self) -> str:
        """The columns that have a value, as messages list them."""
        return ", ".join(self.columns[name] for name in self.fields if name in self) or "no columns"

    def fault(self, column: str, problem: str) -> InputError:
        """The error that names this row and a column of it."""
        return InputError(f"{self.where}, column {self.columns.get(_key(column), column)}: {problem}")

    def value(self, column: str) -> Any:
        """The value of the column.

        Raises:
            InputError: there is no such column in this row.
        """
        if column not in self:
            raise self.fault(column, f"is missing; the row has {self.filled}")
        return self.fields[_key(column)]

    def text(self, column: str, empty: bool = False) -> str:
        """The column's text, unchanged.

        Raises:
            InputError: it is missing, no text, empty without ``empty``, or was not UTF-8.
        """
        return self.checked(column, self.value(column), empty=empty)

    def first_text(self, columns: Sequence[str], empty: bool = False) -> str | None:
        """The text of the first of the columns that has one; None where none has, or all are empty without ``empty``.

        Raises:
            InputError: it was not UTF-8.
        """
        for column in columns:
            value = self.fields.get(_key(column))
            if isinstance(value, str) and (empty or value.strip()):
                return self.checked(column, value, empty=empty)
        return None

    def checked(self, column: str, value: Any, name: str = "", empty: bool = False) -> str:
        """A value of the column as text; ``name`` says which one where there are several.

        Raises:
            InputError: it is no text, empty without ``empty``, or was not UTF-8.
        """
        subject = f"{name} " if name else ""
        if not isinstance(value, str):
            raise self.fault(column, f"{subject}is {type(value).__name__}, not text")
        foreign = re.search("[\ud800-\udfff]", value)
        if foreign:
            code = ord(foreign.group())
            byte = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "a lone surrogate"
            raise self.fault(
                column, f"{subject}has {byte} at character {foreign.start() + 1}, which is not UTF-8; save it as UTF-8"
            )
        if not empty and not value.strip():
            raise self.fault(column, f"{subject}is empty")
        return value


def row_of(file: str, number: int, line: int | None, fields: Mapping[Any, Any]) -> Row:
    """A row of the fields of a file."""
    columns = {_key(str(name)): str(name) for name in fields}
    return Row(file, number, line, {_key(str(name)): value for name, value in fields.items()}, columns)


def documents(
    rows: Sequence[Row], make: Callable[[Row], Document], skip_bad: bool = False
) -> tuple[list[Document], list[str]]:
    """Documents made of rows, and the messages of the rows that were left out.

    Args:
        rows: at least one.
        make: a function from a row to a document; raises InputError on a bad row.
        skip_bad: leave bad rows out.

    Raises:
        InputError: of the first bad row without ``skip_bad``, or where no row is left.
    """
    good: list[Document] = []
    bad: list[str] = []
    for row in rows:
        try:
            good.append(make(row))
        except InputError as error:
            if not skip_bad:
                raise
            bad.append(str(error))
    if not good:
        raise InputError(f"{rows[0].file}: none of its {len(rows)} rows can be used; {bad[0]}")
    return good, bad


def _key(column: str) -> str:
    return "_".join(column.lower().split())
