"""The columns of the benchmarks' files."""

from __future__ import annotations

import csv
import random
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import decoding
from decoding.models.linear_forms import FORMS, is_usable

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted((BENCHMARKS / "results").glob("*.csv"))
pytestmark = pytest.mark.skipif(not FILES, reason="the repository's benchmarks are not here")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a benchmark defines; it does not run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / f"{name}.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_columns_are_those_of_the_kept_results(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of sizes that are not measured again stay in a file, so its header may not change by accident."""
    with file.open(newline="") as stream:
        assert next(csv.reader(stream)) == script(file.stem, monkeypatch)["COLUMNS"]


def test_percentiles_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = script("turns", monkeypatch)
    generator = random.Random(0)
    for count in (1, 2, 5, 8):
        values = [generator.uniform(0, 100) for _ in range(count)]
        cells = turns["percentiles"]("ms", values, digits=6)
        assert list(cells) == ["ms_p20", "ms_p50", "ms_p80"] == turns["percentile_columns"]("ms")
        expected = np.percentile(values, [20, 50, 80])
        assert [float(cell) for cell in cells.values()] == pytest.approx(expected.tolist(), abs=1e-6)
        assert float(cells["ms_p50"]) == pytest.approx(statistics.median(values), abs=1e-6)  # which the tables show
    assert turns["percentiles"]("s", [1.0, 2.0])["s_p50"] == "1.500"


def test_products_of_every_form_are_rows_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = script("linear_products", monkeypatch)
    monkeypatch.setattr(decoding, "load", lambda _name, dtype: (tiny_model("llama"), None))
    forms = [form for form in FORMS if is_usable(form)]  # all, where there is a C compiler
    options = ["--models=tiny", "--rows=4", "--repeats=2", f"--threads={torch.get_num_threads()}"]
    monkeypatch.setattr("sys.argv", ["linear_products.py", *options, f"--output={tmp_path}/found.csv"])
    assert names["main"]() == names["main"]() == 0  # the second run takes the place of the first
    rows = names["read_csv"](tmp_path / "found.csv")
    assert [(row["rows"], row["form"]) for row in rows] == [("1", "linear"), *(("4", form) for form in forms)]
    assert list(rows[0]) == names["COLUMNS"]
    assert float(rows[0]["ratio_to_one_row"]) == 1
    assert all(float(row["ms_per_pass_p50"]) > 0 for row in rows)
    monkeypatch.setattr("sys.argv", [*sys.argv[:2], "--rows=2", *sys.argv[3:]])
    assert names["main"]() == 0
    kept = [row["rows"] for row in names["read_csv"](tmp_path / "found.csv")]
    assert kept == ["4"] * len(forms) + ["1"] + ["2"] * len(forms)  # those of four rows were not measured again


def test_a_method_that_is_measured_alone_leaves_the_rows_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    names = script("real_models", monkeypatch)
    rows = [
        {"model": "m", "batch": 1, "context": 32, "threads": 2, "cpu": "c", "cpu_capability": "d", "method": method}
        for method in names["METHODS"]
    ]
    alone = [row for row in rows if row["method"] in (names["GREEDY"], names["DOLA"])]
    left = script("turns", monkeypatch)["replaced"](rows, alone, names["KEY"])
    assert sorted(row["method"] for row in left) == sorted(names["METHODS"])


def test_rounds_and_readings_of_drafts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark counts where the library's own classes read, by their names."""
    names = script("draft_runs", monkeypatch)
    run = names["Run"]()
    model, ids = tiny_model("llama"), torch.tensor([[3, 4, 5, 3, 4, 5]])
    strategy = decoding.ContrastiveDecoding(tiny_model("llama"), alpha=0.0)
    with names["counted"](run, lazy=True):
        decoding.generate(model, ids, strategy=strategy, max_new_tokens=6, drafts="prompt-lookup", draft_tokens=2)
    assert run.rounds > 0
    assert run.in_rounds in (5, 6)  # the prompt's pass chooses the first
    assert run.read >= run.rounds
    assert run.readings == 2 * run.rounds
