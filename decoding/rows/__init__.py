"""Rows of data: files of every format, and data sets on the hub."""

from decoding.rows.files import SUFFIXES, is_table, iter_placed_texts, iter_rows, iter_texts, read_lines, read_rows
from decoding.rows.hub import rows_of
from decoding.rows.row import Row, documents

__all__ = [
    "SUFFIXES",
    "Row",
    "documents",
    "is_table",
    "iter_placed_texts",
    "iter_rows",
    "iter_texts",
    "read_lines",
    "read_rows",
    "rows_of",
]
