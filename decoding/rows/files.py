"""Rows of data files: CSV, JSON, JSON lines and parquet, told apart by content, and lines of text."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from decoding.errors import InputError, one_line
from decoding.files import expanded
from decoding.rows.row import Row, row_of

__all__ = ["SUFFIXES", "is_table", "iter_placed_texts", "iter_rows", "iter_texts", "read_lines", "read_rows"]

SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson", ".parquet")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
PARQUET = b"PAR1"  # the first bytes of such a file
GZIP = b"\x1f\x8b"
BOMS_OF_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
PARQUET_BATCH = 1024  # rows that are in memory together
LONGEST_FIELD = 2**24  # characters; more in one CSV field is a quotation mark that nothing closes
HEAD = 64  # bytes behind leading space that tell the formats apart


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; see :func:`iter_rows`.

    Raises:
        InputError: as there, or the file holds no row.
    """
    rows = list(iter_rows(path))
    if not rows:
        raise InputError(
            f"{path}: holds no rows; expected CSV with a header, a JSON list of objects, JSON lines, or parquet"
        )
    return rows


def iter_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header, a JSON list of objects, JSON lines or a parquet file.

    All but parquet may be gzipped. A JSON list is read as a whole, the others bit by bit. A ``.txt`` file that holds no
    objects has one column, ``text``, and a row for each line that is not empty. Bytes that are no UTF-8 stay with the
    row they are in, and :meth:`Row.text` names them.

    Raises:
        InputError: the file cannot be read, or is none of these; pyarrow, which reads parquet, is not installed.
    """
    path = expanded(path)
    name = _name(path)
    with _naming(path):
        head = _head(path)
        if head.startswith(PARQUET) or name.endswith(".parquet"):
            yield from _parquet_rows(path)
            return
        _check_text(path, head)
        start = head.decode("utf-8-sig", "surrogateescape").lstrip()
        newline = None
        read: Callable[[str, TextIO], Iterator[Row]]
        if name.endswith(".txt") and not re.match(r'(\[\s*)?\{\s*"', start):
            read = _text_lines
        elif start.startswith("["):
            read = _json_rows
        elif start.startswith("{") or name.endswith(JSON_SUFFIXES):
            read = _json_lines
        else:
            read, newline = _csv_rows, ""  # its fields may hold line ends
        with _opened(path, newline) as file:
            yield from read(str(path), file)


def iter_texts(path: Path, columns: Sequence[str], advice: str = "") -> Iterator[str]:
    """The texts of a file: its lines, less empty ones, or those of a table (:func:`is_table`), which may be empty.

    Args:
        path: of the file.
        columns: of a table; the first of them that a row has holds its text.
        advice: what to do where a row has none, for the message.

    Raises:
        InputError: as :func:`iter_rows`, or a row without text.
    """
    for _, text in iter_placed_texts(path, columns, advice):
        yield text


def iter_placed_texts(path: Path, columns: Sequence[str], advice: str = "") -> Iterator[tuple[str, str]]:
    """The texts of :func:`iter_texts`, each after its place as messages name it."""
    path = expanded(path)
    if not is_table(path):
        with _naming(path):
            _check_text(path, _head(path))
            with _opened(path, None) as file:
                for row in _text_lines(str(path), file):
                    yield f"{row.file}, line {row.line}", row.text("text")
        return
    for row in iter_rows(path):
        text = row.first_text(columns, empty=True)
        if text is None:
            problem = f"{row.where}: has no text in {' or '.join(columns)}; the row has {row.filled}"
            raise InputError(f"{problem}; {advice}" if advice else problem)
        yield row.where, text


def is_table(path: Path) -> bool:
    """Whether a file's name ends as those of files with columns: ``.csv``, ``.jsonl.gz``, ``.parquet``, ..."""
    return _name(path).endswith(SUFFIXES)


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


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into one line that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error


def _name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def _opened(path: Path, newline: str | None) -> TextIO:
    return io.TextIOWrapper(_unzipped(path), "utf-8-sig", "surrogateescape", newline)


def _unzipped(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(len(GZIP)) == GZIP
    return gzip.open(path) if zipped else path.open("rb")  # type: ignore[return-value]


def _head(path: Path) -> bytes:
    """The file's beginning, of which HEAD bytes or more are no space."""
    head = b""
    with _unzipped(path) as file:
        while len(head.lstrip()) < HEAD and (more := file.read(io.DEFAULT_BUFFER_SIZE)):
            head += more
    return head


def _check_text(path: Path, head: bytes) -> None:
    if head.startswith(BOMS_OF_UTF_16) or b"\x00" in head:
        raise InputError(f"{path}: is UTF-16, or no text at all; expected UTF-8")


def _text_lines(file: str, text: Iterable[str]) -> Iterator[Row]:
    lines = ((line, content) for line, content in enumerate(text, 1) if content.strip())
    for number, (line, content) in enumerate(lines, 1):
        yield row_of(file, number, line, {"text": content.removesuffix("\n")})


def _json_rows(file: str, text: TextIO) -> Iterator[Row]:
    for number, fields in enumerate(_parsed(file, text.read()), 1):
        if not isinstance(fields, dict):
            raise InputError(f"{file}, row {number}: is {type(fields).__name__}; expected an object")
        yield row_of(file, number, None, fields)


def _json_lines(file: str, text: Iterable[str]) -> Iterator[Row]:
    number = 0
    for line, content in enumerate(text, 1):
        if not content.strip():
            continue
        fields = _parsed(file, content.removesuffix("\n"), line)
        if not isinstance(fields, dict):
            raise InputError(f"{file}, line {line}: is {type(fields).__name__}; expected an object")
        number += 1
        yield row_of(file, number, line, fields)


def _parsed(file: str, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1}, column {error.colno}"
        raise InputError(f"{file}, {at}: is no valid JSON ({error.msg})") from error


def _csv_rows(file: str, text: Iterable[str]) -> Iterator[Row]:
    reader = csv.reader(text, strict=True)
    records = _csv_records(reader)
    try:
        header = next((record for record in records if record), [])
        number, before = 0, reader.line_num
        for values in records:
            line, before = before + 1, reader.line_num
            if not values:
                continue
            number += 1
            if len(values) > len(header):
                raise InputError(f"{file}, row {number} (line {line}): {len(values)} fields, {len(header)} columns")
            yield row_of(file, number, line, dict(zip(header, values, strict=False)))
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: is no valid CSV ({error})") from error


def _csv_records(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """The reader's records. The process has one limit on fields, so it is ours only while a record is read."""
    while True:
        limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            record = next(reader, None)
        finally:
            csv.field_size_limit(limit)
        if record is None:
            return
        yield record


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(
            f"{path}: parquet files need pyarrow ({one_line(error)}); pip install 'contrastive-decoding[eval]'"
        ) from error
    try:
        with ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(PARQUET_BATCH))
            for number, fields in enumerate(itertools.chain.from_iterable(batches), 1):
                yield row_of(str(path), number, None, fields)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as parquet ({one_line(error)})") from error
