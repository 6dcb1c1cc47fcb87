"""The table of an evaluation: no star that its documents cannot carry, and Holm's correction where it is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.results import Results, corrected
from decoding.evals.engine.runner import run
from decoding.evals.engine.tables import show_results
from decoding.evals.engine.task import Document, Task
from decoding.strategies.registry import parse_strategy

METRICS = ("right", "share")


class Growing(Task):
    """Every strategy is better than the one before it on every document, by ever the same."""

    name = "growing"

    def __init__(self, documents: int) -> None:
        self.count = documents

    def documents(self) -> list[Document]:
        return [Document(str(i), i) for i in range(self.count)]

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
        return [{"metrics": {"right": float(i > 0), "share": 0.1 * i}} for i, _ in enumerate(configurations)]


def results(documents: int, strategies: Sequence[str] = ("greedy", "dola", "context-aware:context=a")) -> Results:
    made = [
        Configuration(parse_strategy(name), {"strategy": name.partition(":")[0], "parameters": {}})
        for name in strategies
    ]
    found = run(Growing(documents), made)
    assert found is not None
    return found


def table(shown: Results) -> str:
    out = io.StringIO()
    show_results(Console(file=out, width=80), shown, METRICS)
    return out.getvalue()


@pytest.mark.parametrize("documents", [1, 2, 3, 4, 5])
def test_fewer_than_six_documents_carry_no_star(documents: int) -> None:
    figures, _, note = table(results(documents)).rpartition("\n" + str(documents))
    assert "+100.0" in figures
    assert "*" not in figures
    assert f"document{'s' if documents > 1 else ''};" in note.splitlines()[0]
    assert ("95%" in figures) == (documents > 1)


def test_one_document_has_no_interval() -> None:
    alone, pair = results(1), results(2)
    for entry in (*alone["configurations"], *alone["comparisons"]):
        assert all((figure["low"], figure["high"]) == (None, None) for figure in entry["metrics"].values())
    assert all(figure["low"] is not None for figure in pair["comparisons"][0]["metrics"].values())


def test_six_documents_carry_one_star_and_ten_two() -> None:
    assert table(results(6)).count("+100.0* ") == 2
    assert table(results(10)).count("+100.0**") == 2


def test_holms_correction_is_over_all_that_the_table_shows() -> None:
    plain = results(7)  # p = 2/128 = .0156 each, four of them
    p = plain["comparisons"][0]["metrics"]["share"]["p"]
    assert p == pytest.approx(2 / 128)
    shown = corrected(plain, METRICS)
    assert [shown["comparisons"][i]["metrics"][name]["p_holm"] for i in (0, 1) for name in METRICS] == [
        pytest.approx(4 * p)
    ] * 4
    assert "p_holm" not in plain["comparisons"][0]["metrics"]["share"]
    assert table(plain).count("+100.0* ") == 2
    assert "*" not in table(shown).rpartition("\n7")[0]
    assert "Holm's correction for 4" in table(shown)
    one = corrected(plain, METRICS[:1])
    assert one["comparisons"][1]["metrics"]["right"]["p_holm"] == pytest.approx(2 * p)
