"""The evidence: its commands, its runs, and the page that is drawn of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from forked_process import after_fork

from decoding.cli.app import app
from decoding.errors import OptionError
from decoding.evals import cli  # adds the evaluations to the app
from decoding.strategies.registry import candidates_of, parse_strategy
from decoding.tools.evidence import page as page_module
from decoding.tools.evidence import running
from decoding.tools.evidence.page import draw
from decoding.tools.evidence.parts import PARTS, Column, Part, Step
from decoding.tools.evidence.running import run_part

ROOT = Path(__file__).resolve().parents[3]
FORK = multiprocessing.get_context("fork")
assert cli.app is app


def test_the_page_is_as_drawn() -> None:
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert draw(page, ROOT / "docs/evidence") == page


def test_shares_on_the_page_are_percent() -> None:
    """Metrics come as shares or in percent, and a column must know which: no figure of a table is beyond 100."""
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    rows = [line.partition("|")[2].partition("|")[2] for line in page.splitlines() if line.startswith("| ")]
    figures = [float(number) for row in rows for number in re.findall(r"\d*\.\d+", row)]
    assert len(figures) > 300
    assert max(figures) <= 100


def test_every_part_has_its_place_on_the_page() -> None:
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    drawn = [name for name, part in PARTS.items() if not any("--output" in step.arguments for step in part.steps)]
    assert sorted(re.findall(r"<!-- part: ([a-z0-9-]+) -->", page)) == sorted(drawn)


@pytest.mark.parametrize("name", PARTS)
def test_commands_are_ones_that_the_command_line_takes(name: str, tmp_path: Path) -> None:
    part = PARTS[name]
    assert set(part.after) <= set(PARTS)
    for step in part.steps:
        command, words = typer.main.get_command(app), list(step.arguments)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        given = command.make_context(name, [*words, "--output", str(tmp_path)]).params
        strategies = given.get("strategy") or []
        assert len(strategies) == len(part.rows)
        for text in strategies:
            for candidate in candidates_of(text) if step.arguments[0] == "tune" else [text]:
                parse_strategy(candidate)


MINIATURE = ("tune", "truthfulqa", "--miniature", "--limit", "12", "--strategy", "greedy", "--strategy", "dola")
COLUMNS = (Column("MC1", "MC1", 100.0), Column("MC2", "MC2", 100.0))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"small": Part((Step(MINIATURE),), ("greedy", "DoLa"), COLUMNS), "later": Part((), after=("makes",)),
             "makes": Part((Step(("induce", "--output", "{work}/adapter")),)),
             # No such command, which is told before torch is imported.
             "fails": Part((Step(("eval", "truth", "--data", "{data}/absent.csv")),))}  # fmt: skip
    for module in (running, page_module):
        monkeypatch.setattr(module, "PARTS", parts)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in processes that need not import torch again."""

    def run(command: Sequence[str], check: bool) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "decoding.evals.cli"]
        assert not check

        def call() -> None:
            after_fork()
            os._exit(cli.main(command[3:]))

        child = FORK.Process(target=call)
        child.start()
        child.join()
        return subprocess.CompletedProcess(command, child.exitcode or 0)

    monkeypatch.setattr(running.subprocess, "run", run)


@pytest.mark.usefixtures("small", "forked", "same_last_bits")
def test_a_part_that_is_killed_ends_in_the_same_file_and_table(tmp_path: Path) -> None:
    run_part("small", "data", str(tmp_path / "alone"), tmp_path / "first")

    def run_in_a_group() -> None:
        os.setsid()
        run_part("small", "data", str(tmp_path / "killed"), tmp_path / "second")

    samples = tmp_path / "killed/small/1/samples_truthfulqa_miniature_validation.jsonl"
    child = FORK.Process(target=run_in_a_group)
    child.start()
    while not (samples.exists() and samples.stat().st_size):
        assert child.is_alive()
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.join()
    assert not (tmp_path / "second").exists()
    run_part("small", "data", str(tmp_path / "killed"), tmp_path / "second")
    first, second = ((tmp_path / name / "small.json").read_text() for name in ("first", "second"))
    assert first == second
    assert str(tmp_path) not in first
    page = draw("# Title\n<!-- part: small -->\nold\n<!-- end -->\nText.\n", tmp_path / "first")
    kept = json.loads(first)
    figures = kept["results"][0]["configurations"][1]["metrics"]["MC1"]
    assert "old" not in page
    assert page.startswith("# Title\n")
    assert page.endswith("<!-- end -->\nText.\n")
    assert f"| {100 * figures['value']:.1f} ({100 * figures['low']:.1f}-{100 * figures['high']:.1f})" in page
    chosen = parse_strategy(kept["results"][0]["tuning"]["strategies"][1]["chosen"]).strategy
    assert f"| DoLa (layers {chosen.layers}, final_norm {chosen.final_norm}) |" in page
    assert "`make evidence PART=small`; 12 documents, values chosen on 12 others by MC1, then MC2; transformers" in page


@pytest.mark.usefixtures("small")
def test_what_cannot_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="later needs what makes makes: run that first"):
        run_part("later", "data", str(tmp_path), tmp_path)
    with pytest.raises(OptionError, match=r"fails: decoding eval truth --data data/absent\.csv .* ended with 2"):
        run_part("fails", "data", str(tmp_path), tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.usefixtures("small")
def test_an_adapter_is_made_once(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()  # as training that was killed leaves it
    with pytest.raises(OptionError, match="later needs what makes makes: run that first"):
        run_part("later", "data", str(tmp_path), tmp_path)
    with pytest.raises(OptionError, match=r"makes: decoding induce .* ended with 2"):
        run_part("makes", "data", str(tmp_path), tmp_path)
    (adapter / "adapter_config.json").write_text("{}")
    run_part("makes", "data", str(tmp_path), tmp_path)
    run_part("later", "data", str(tmp_path), tmp_path)


@pytest.mark.usefixtures("small")
def test_a_part_that_has_not_run_says_so(tmp_path: Path) -> None:
    assert "Not run yet: `make evidence PART=small`." in draw("<!-- part: small -->\n<!-- end -->", tmp_path)


def written(p_values: list[list[float]]) -> dict[str, Any]:
    """What is kept of languages with two strategies, the second of which has these p-values of one metric."""

    def figure(value: float, p: float | None = None) -> dict[str, Any]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "p": p, "mcnemar_p": None}

    return {
        "cpu": "a processor",
        "results": [
            {
                "language": code,
                "versions": {"transformers": "5", "torch": "2"},
                "counts": {"evaluated": 9},
                "configurations": [{"metrics": {"MC1": figure(0.25)}}, {"metrics": {"MC1": figure(0.5)}}],
                "comparisons": [{"metrics": {"MC1": figure(0.25, p)}}],
            }
            for code, (p,) in zip(("de", "fr", "es"), p_values, strict=False)
        ],
    }


def test_stars_are_corrected_for_the_whole_table() -> None:
    part = Part((), ("greedy", "DoLa"), COLUMNS)
    lines = list(page_module.table(part, written([[0.02], [0.004], [0.9]])))
    assert lines == [
        "| language | strategy | MC1 |",
        "| --- | --- | ---: |",
        "| de | greedy | 25.0 (24.0-26.0) |",
        r"|  | DoLa | 50.0 (49.0-51.0) \* |",  # 2 x 0.02
        "| fr | greedy | 25.0 (24.0-26.0) |",
        r"|  | DoLa | 50.0 (49.0-51.0) \* |",  # 3 x 0.004
        "| es | greedy | 25.0 (24.0-26.0) |",
        "|  | DoLa | 50.0 (49.0-51.0) |",
    ]
    (alone, *_) = [line for line in page_module.table(part, written([[0.004]])) if "DoLa" in line]
    assert alone == r"| DoLa | 50.0 (49.0-51.0) \*\* |"
