"""Rows of data files: CSV, JSON and JSON lines, told apart by content; messages name file, row and column."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from decoding.errors import InputError, one_line
from decoding.models.quiet import quiet

__all__ = ["SUFFIXES", "Row", "documents", "read_lines", "read_rows", "rows_of"]

Document = TypeVar("Document")

SUFFIXES = (".csv", ".json", ".jsonl")
SPLITS = ("validation", "val", "test", "train")  # of a hub data set, the first of these that it has
LONGEST_FIELD = 2**24  # characters; more in one CSV field is a quotation mark that nothing closes


@dataclass(frozen=True)
class Row:
    """One row of a data file.

    Attributes:
        file: the file or hub name, as messages call it.
        number: from 1; a CSV's header is not counted.
        line: of the file, from 1, where rows have lines of their own.
        fields: values by column name in lower case with ``_`` for spaces, so that ``Best Answer`` is ``best_answer``.
        columns: the names as the file has them, by those of ``fields``.
    """

    file: str
    number: int
    line: int | None
    fields: Mapping[str, Any]
    columns: Mapping[str, str]

    def __contains__(self, column: str) -> bool:
        return self.fields.get(column) is not None

    @property
    def where(self) -> str:
        """File and row, as messages name them."""
        return f"{self.file}, row {self.number}" + (f" (line {self.line})" if self.line is not None else "")

    def fault(self, column: str, problem: str) -> InputError:
        """The error that names this row and a column of it."""
        return InputError(f"{self.where}, column {self.columns.get(column, column)}: {problem}")

    def value(self, column: str) -> Any:
        """The value of the column.

        Raises:
            InputError: there is no such column in this row.
        """
        if column not in self:
            filled = ", ".join(self.columns[name] for name in self.fields if name in self)
            raise self.fault(column, f"is missing; the row has {filled or 'no columns'}")
        return self.fields[column]

    def text(self, column: str) -> str:
        """The column's text, unchanged.

        Raises:
            InputError: it is missing, no text, empty, or was not UTF-8.
        """
        return self.checked(column, self.value(column))

    def checked(self, column: str, value: Any, name: str = "") -> str:
        """A value of the column as text that is not empty; ``name`` says which one where there are several.

        Raises:
            InputError: it is no text, empty, or was not UTF-8.
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
        if not value.strip():
            raise self.fault(column, f"{subject}is empty")
        return value


def rows_of(source: str, configuration: str | None = None) -> list[Row]:
    """The rows of a file, of a folder that ``datasets`` can read, or of a data set on the hub.

    Args:
        source: a path, or a hub name, perhaps with a configuration: ``owner/name:configuration``.
        configuration: of a hub name that names none.

    Raises:
        InputError: there are no such data, or they cannot be read.
    """
    if not source.strip():
        raise InputError("the name of the data is empty: give a file, a folder or a hub name")
    path = Path(source).expanduser()
    if path.is_file():
        return read_rows(path)
    if path.is_dir():
        return _hub_rows(str(path))
    if path.suffix in SUFFIXES or source.startswith((".", "~", "/")) or source.count("/") > 1:
        raise InputError(f"{source}: there is no such file or folder")
    name, _, chosen = source.partition(":")
    return _hub_rows(name, chosen or configuration)


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file with a header, a JSON list of objects, or JSON lines; gzipped or not.

    A ``.txt`` file that holds no objects has one column, ``text``, and a row for each line that is not empty. Bytes
    that are no UTF-8 stay with the row they are in, and :meth:`Row.text` names them.

    Raises:
        InputError: the file cannot be read, is none of these, or holds no row.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in content[:1024]:
        raise InputError(f"{path}: is UTF-16, or no text at all; expected UTF-8")
    text = content.decode("utf-8-sig", "surrogateescape")
    start = text.lstrip()[:1]
    read = _json_rows if start == "[" else _json_lines if start == "{" else _csv_rows
    if path.suffix == ".txt" and not re.match(r'\s*(\[\s*)?\{\s*"', text):
        read = _text_lines
    rows = list(read(str(path), text))
    if not rows:
        raise InputError(f"{path}: holds no rows; expected CSV with a header, a JSON list of objects, or JSON lines")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, empty ones in between included.

    Raises:
        InputError: it cannot be read, or holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: holds no text")
    return lines[:-1] if lines[-1] == "" else lines


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


def _hub_rows(name: str, configuration: str | None = None) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{name}: hub data needs datasets; pip install 'contrastive-decoding[eval]'") from error
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with quiet():
            loaded = datasets.load_dataset(name, configuration)
    except Exception as error:  # of any kind: there are no rows
        raise InputError(f"{name}: no data of this name could be loaded ({one_line(error)})") from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    split = next((name for name in SPLITS if name in loaded), next(iter(loaded)))
    return [_row(name, number, None, fields) for number, fields in enumerate(loaded[split], 1)]


def _row(file: str, number: int, line: int | None, fields: Mapping[str, Any]) -> Row:
    columns = {"_".join(str(name).lower().split()): str(name) for name in fields}
    return Row(file, number, line, {name: fields[column] for name, column in columns.items()}, columns)


def _text_lines(file: str, text: str) -> Iterator[Row]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return (_row(file, number, line, {"text": content}) for number, (line, content) in enumerate(lines, 1))


def _json_rows(file: str, text: str) -> Iterator[Row]:
    for number, fields in enumerate(_parsed(file, text), 1):
        if not isinstance(fields, dict):
            raise InputError(f"{file}, row {number}: is {type(fields).__name__}; expected an object")
        yield _row(file, number, None, fields)


def _json_lines(file: str, text: str) -> Iterator[Row]:
    number = 0
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        fields = _parsed(file, content, line)
        if not isinstance(fields, dict):
            raise InputError(f"{file}, line {line}: is {type(fields).__name__}; expected an object")
        number += 1
        yield _row(file, number, line, fields)


def _parsed(file: str, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1}, column {error.colno}"
        raise InputError(f"{file}, {at}: is no valid JSON ({error.msg})") from error


def _csv_rows(file: str, text: str) -> Iterator[Row]:
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        number, before = 0, reader.line_num
        for values in reader:
            line, before = before + 1, reader.line_num
            if not values:
                continue
            number += 1
            row = _row(file, number, line, dict(zip(header, values, strict=False)))
            if len(values) > len(header):
                raise InputError(f"{file}, row {number} (line {line}): {len(values)} fields, {len(header)} columns")
            yield row
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: is no valid CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
