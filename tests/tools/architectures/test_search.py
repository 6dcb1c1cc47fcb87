"""A sample of the table is run again and agrees with the page that is committed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import transformers

import decoding
from decoding.tools.architectures import early_exits, search, trial
from decoding.tools.architectures.columns import COLUMNS
from decoding.tools.architectures.results import Cell, Row, table, totals
from decoding.tools.architectures.search import contrastive_search
from decoding.tools.architectures.tiny import causal_types, tiny_model
from decoding.tools.architectures.trial import try_in_process, try_type

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"

# Sliding window with soft-caps, chunks, sinks and experts, local layers and learned positions, linear attention,
# convolution hybrids, a decoder whose own result depends on padding, latent attention to keys chosen by an index, and
# what is recomputed or refused.
SAMPLE = [
    "gemma2", "llama4_text", "gpt_oss", "gpt_neo", "qwen3_next", "lfm2", "bart", "deepseek_v32", "rwkv", "cpmant",
]  # fmt: skip


def read_table(text: str) -> dict[str, dict[str, str]]:
    """The verdicts of a page's first table, by type and column."""
    first = text.split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines() if line.startswith("|")
    ]
    columns = rows[0][1:-1]
    return {row[0]: dict(zip(columns, row[1:-1], strict=True)) for row in rows[2:]}


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the first tokens alone: in the recomputation each takes passes over every candidate's whole text."""
    monkeypatch.setattr(search, "STEPS", 2)
    monkeypatch.setattr(early_exits, "STEPS", 2)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_is_as_the_page_says(model_type: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in text:
        pytest.skip(f"the page was made with another transformers than {transformers.__version__}")
    page = read_table(text)[model_type]
    row = try_type(model_type)
    assert not row.not_tried
    assert {name: cell.verdict for name, cell in row.cells.items()} == {name: page[name] for name in row.cells}


def test_the_page_has_every_type_and_nothing_wrong_in_it() -> None:
    page = read_table(PAGE.read_text(encoding="utf-8"))
    if f"transformers {transformers.__version__}," in PAGE.read_text(encoding="utf-8"):
        assert list(page) == causal_types()
    verdicts = {cells["contrastive search"] for cells in page.values()}
    assert verdicts <= {"shared prefix", "fork", "recompute", "refused", "-"}


@pytest.mark.usefixtures("few_steps")
def test_a_search_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = decoding.generate

    def off(*args: Any, **kwargs: Any) -> Any:
        return generate(*args, **{**kwargs, "penalty_alpha": 0.59})

    monkeypatch.setattr(decoding, "generate", off)
    cell = contrastive_search(tiny_model("llama"))["contrastive search"]
    assert cell.verdict == "wrong"
    assert "row 0, token 0" in cell.reason


def test_a_type_that_hangs_or_dies_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "try_type", lambda _: time.sleep(60))
    assert try_in_process("llama", 0.5).cells["contrastive search"].verdict == "hang"
    monkeypatch.setattr(trial, "try_type", lambda _: os._exit(9))
    died = try_in_process("llama", 30).cells["contrastive search"]
    assert (died.verdict, died.reason) == ("crash", "its process ended with 9")


def test_totals_and_table_count_alike() -> None:
    rows = [
        Row("a", {"contrastive search": Cell("shared prefix"), "left padding": Cell("exact")}),
        Row("b", {"contrastive search": Cell("refused", "b: a | reason"), "left padding": Cell("-")}),
        Row("c", not_tried="writes no text"),
    ]
    assert totals(rows) == {"types": 3, "tried": 2, "shared prefix": 1, "refused": 1}
    text = table(rows, COLUMNS[:2], {"transformers": "5", "torch": "2"})
    assert "Of 3 types 2 write text" in text
    assert "1 (50.0%) are exact" in text
    assert read_table(text) == {
        "a": {"contrastive search": "shared prefix", "left padding": "exact"},
        "b": {"contrastive search": "refused", "left padding": "-"},
        "c": {"contrastive search": "-", "left padding": "-"},
    }
