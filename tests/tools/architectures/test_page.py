"""The committed page is what the tool makes of the rows in it: its sentences, counts and tables."""

from __future__ import annotations

import re
from pathlib import Path

from decoding.tools.architectures.columns import COLUMNS
from decoding.tools.architectures.command import BESIDE, CACHES, ENCODER_DECODERS, counted
from decoding.tools.architectures.other_inputs_search import CACHE_COLUMNS, OTHER_INPUTS_COLUMNS
from decoding.tools.architectures.results import Cell, Row, section, table

PAGE = (Path(__file__).parents[3] / "docs" / "architectures.md").read_text(encoding="utf-8")
PARTS = re.split(r"(?=\n## )", PAGE)


def rows_of(part: str) -> list[Row]:
    """The rows of a part's table; all reasons of a row are put into its first cell."""
    lines = [line for line in part.splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")][1:-1]
    rows = []
    for line in lines[2:]:
        name, *verdicts, why = (cell.strip() for cell in line[1:-1].split("|"))
        if why.startswith("not tried: "):
            rows.append(Row(name, not_tried=why.removeprefix("not tried: ")))
        else:
            cells = {column: Cell(verdict) for column, verdict in zip(columns, verdicts, strict=True)}
            rows.append(Row(name, cells | {columns[0]: Cell(verdicts[0], why)}))
    return rows


def test_the_first_table_and_what_is_said_of_it() -> None:
    made_with = re.search(r"on transformers (\S+), torch (\S+)\.$", PARTS[0], re.MULTILINE)
    assert made_with is not None
    versions = dict(zip(("transformers", "torch"), made_with.groups(), strict=True))
    assert table(rows_of(PARTS[0]), COLUMNS, versions) == PARTS[0]


def test_the_further_tables_and_what_is_said_of_them() -> None:
    encoding, beside, caches = map(rows_of, PARTS[1:])
    assert [
        section("Encoder-decoders", ENCODER_DECODERS + counted(encoding), encoding, OTHER_INPUTS_COLUMNS[:2]),
        section("Models of images and sound", BESIDE + counted(beside), beside, OTHER_INPUTS_COLUMNS),
        section("Quantised caches", CACHES, caches, CACHE_COLUMNS),
    ] == PARTS[1:]
