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
from decoding.tools.evidence import command as command_module
from decoding.tools.evidence import page as page_module
from decoding.tools.evidence import running
from decoding.tools.evidence.command import evidence_command
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
    drawn = [name for name, part in PARTS.items() if not any(step.makes for step in part.steps)]
    assert sorted(re.findall(r"<!-- part: ([a-z0-9-]+) -->", page)) == sorted(drawn)


@pytest.mark.parametrize("name", PARTS)
def test_commands_are_ones_that_the_command_line_takes(name: str, tmp_path: Path) -> None:
    part = PARTS[name]
    assert len({step.command for step in part.steps}) == len(part.steps)
    for step in part.steps:
        assert set(step.after) <= set(PARTS)
        command, words = typer.main.get_command(app), list(step.arguments)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        given = command.make_context(name, [*words, "--output", str(tmp_path)]).params
        strategies = given.get("strategy") or []
        assert len(strategies) == len(step.rows)
        for text in strategies:
            for candidate in candidates_of(text) if step.arguments[0] == "tune" else [text]:
                parse_strategy(candidate)


MINIATURE = ("tune", "truthfulqa", "--miniature", "--limit", "12", "--strategy", "greedy", "--strategy", "dola")
COLUMNS = (Column("MC1", "MC1", 100.0), Column("MC2", "MC2", 100.0))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"small": Part((Step(MINIATURE, rows=("greedy", "DoLa")),), COLUMNS),
             "later": Part((Step(("eval", "truth", "--data", "absent.csv"), after=("makes",)),)),
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

    folder = tmp_path / "killed/small" / running.PARTS["small"].steps[0].digest
    samples = folder / "samples_truthfulqa_miniature_validation.jsonl"
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
    (run,) = json.loads(first)["runs"]
    figures = run["results"][0]["configurations"][1]["metrics"]["MC1"]
    assert "old" not in page
    assert page.startswith("# Title\n")
    assert page.endswith("<!-- end -->\nText.\n")
    assert f"| {100 * figures['value']:.1f} ({100 * figures['low']:.1f}-{100 * figures['high']:.1f})" in page
    chosen = parse_strategy(run["results"][0]["tuning"]["strategies"][1]["chosen"]).strategy
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
def test_an_adapter_is_made_once_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, made_by = tmp_path / "adapter", tmp_path / "adapter.command"
    monkeypatch.setattr(running.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 2))
    config = adapter / "adapter_config.json"
    for begin in (adapter.mkdir, lambda: config.write_text("{}"), lambda: made_by.write_text("decoding induce -x 2")):
        begin()  # training that was killed, an adapter of somebody, and one of another recipe
        with pytest.raises(OptionError, match="later needs what makes makes: run that first"):
            run_part("later", "data", str(tmp_path), tmp_path)
        with pytest.raises(OptionError, match=r"makes: decoding induce .* ended with 2"):
            run_part("makes", "data", str(tmp_path), tmp_path)
    monkeypatch.setattr(running.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 0))
    run_part("makes", "data", str(tmp_path), tmp_path)
    monkeypatch.setattr(running.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 2))
    run_part("makes", "data", str(tmp_path), tmp_path)
    with pytest.raises(OptionError, match=r"later: decoding eval truth .* ended with 2"):
        run_part("later", "data", str(tmp_path), tmp_path)


@pytest.mark.usefixtures("small")
def test_a_part_that_has_not_run_says_so(tmp_path: Path) -> None:
    assert "Not run yet: `make evidence PART=small`." in draw("<!-- part: small -->\n<!-- end -->", tmp_path)


def figure(value: float, p: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "p": p, "mcnemar_p": None}


def run_of(step: Step, p_values: Sequence[float], cpu: str = "a processor") -> dict[str, Any]:
    """What is kept of a command, whose strategies but for the first have these p-values of one metric."""
    values = [0.25, *(0.5 for _ in p_values)]
    return {
        "command": step.command,
        "cpu": cpu,
        "results": [
            {
                "language": step.language,
                "versions": {"transformers": "5", "torch": "2"},
                "counts": {"evaluated": 9},
                "configurations": [{"metrics": {"MC1": figure(value)}} for value in values],
                "comparisons": [{"metrics": {"MC1": figure(0.25, p)}} for p in p_values],
            }
        ],
    }


def runs(steps: Sequence[Step], p_values: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {step.command: run_of(step, p) for step, p in zip(steps, p_values, strict=False)}


def test_stars_are_corrected_for_the_whole_table() -> None:
    steps = tuple(Step(("eval", code), code, ("greedy", "DoLa")) for code in ("de", "fr", "es"))
    part = Part(steps, COLUMNS)
    lines = list(page_module.table(part, runs(steps, [[0.02], [0.004], [0.9]])))
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
    (alone, *_) = [line for line in page_module.table(part, runs(steps, [[0.004]])) if "DoLa" in line]
    assert alone == r"|  | DoLa | 50.0 (49.0-51.0) \*\* |"


def test_commands_of_one_language_are_one_table() -> None:
    steps = (Step(("eval", "a"), rows=("greedy", "DoLa")), Step(("eval", "b"), rows=("greedy", "beam", "LOL")))
    lines = list(page_module.table(Part(steps, COLUMNS), runs(steps, [[0.02], [0.004, 0.9]])))
    assert lines[2:] == [
        "| greedy | 25.0 (24.0-26.0) |",
        r"| DoLa | 50.0 (49.0-51.0) \* |",
        r"| beam | 50.0 (49.0-51.0) \* |",
        "| LOL | 50.0 (49.0-51.0) |",
    ]


SECOND = ("eval", "truthfulqa", "--miniature", "--limit", "3", "--strategy", "greedy")


@pytest.mark.usefixtures("small", "forked")
def test_what_a_command_gave_is_kept_as_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = tuple(Step((*SECOND, "--strategy", name), rows=("greedy", name)) for name in ("dola", "sled"))
    fails = Step(("eval", "truth", "--data", "absent.csv"))
    parts = {"whole": Part(steps, COLUMNS), "begun": Part((steps[0], fails), COLUMNS)}
    for module in (running, page_module):
        monkeypatch.setattr(module, "PARTS", parts)
    with pytest.raises(OptionError, match=r"begun: decoding eval truth .* ended with 2"):
        run_part("begun", "data", str(tmp_path / "lost"), tmp_path)
    page = draw("<!-- part: begun -->\n<!-- end -->", tmp_path)
    assert "| dola |" in page
    assert "1 of its 2 commands have been run; the same command goes on." in page

    # Elsewhere, where the samples are not: only what is left is evaluated.
    written = json.loads((tmp_path / "begun.json").read_text())
    (tmp_path / "whole.json").write_text(json.dumps({"part": "whole", "runs": written["runs"]}))
    run_part("whole", "data", str(tmp_path / "work"), tmp_path)
    assert [path.name for path in (tmp_path / "work/whole").iterdir()] == [steps[1].digest]
    kept = json.loads((tmp_path / "whole.json").read_text())
    assert [run["command"] for run in kept["runs"]] == [step.command for step in steps]
    assert kept["runs"][0] == written["runs"][0]
    assert "commands have been run" not in draw("<!-- part: whole -->\n<!-- end -->", tmp_path)

    run_part("whole", "data", str(tmp_path / "work"), tmp_path)  # there is nothing left
    assert len(list((tmp_path / "work/whole").iterdir())) == 1
    run_part("whole", "data", str(tmp_path / "work"), tmp_path, anew=True)
    assert {path.name for path in (tmp_path / "work/whole").iterdir()} == {step.digest for step in steps}
    assert json.loads((tmp_path / "whole.json").read_text()) == kept


@pytest.mark.usefixtures("forked")
def test_what_is_run_anew_is_kept_until_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what another command left is no result of this one, wherever it stands in the part."""
    first, fails = Step((*SECOND, "--strategy", "dola"), "en", ("greedy", "dola")), Step(("eval", "truth"), "de")
    monkeypatch.setattr(running, "PARTS", {"whole": Part((first,), COLUMNS)})
    run_part("whole", "data", str(tmp_path / "work"), tmp_path)
    (kept,) = json.loads((tmp_path / "whole.json").read_text())["runs"]
    (folder,) = (tmp_path / "work/whole").iterdir()
    folder.rename(tmp_path / "work/whole/1")
    (tmp_path / "whole.json").write_text(json.dumps({"part": "whole", "runs": [kept, run_of(fails, [])]}))
    monkeypatch.setattr(running, "PARTS", {"whole": Part((first, fails), COLUMNS)})
    with pytest.raises(OptionError, match=r"decoding eval truth .* ended with 2"):
        run_part("whole", "data", str(tmp_path / "work"), tmp_path, anew=True)
    assert json.loads((tmp_path / "whole.json").read_text())["runs"] == [kept, run_of(fails, [])]


def test_weights_that_are_not_the_same_in_all_commands_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = tuple(Step(("eval", name), rows=("greedy", name)) for name in "abc")
    monkeypatch.setattr(page_module, "PARTS", {"three": Part(steps, COLUMNS)})
    kept = [run_of(step, [0.5]) for step in steps]
    for run, adapter in zip(kept[:2], ("one", "other"), strict=True):  # the third does not tell, as older files do not
        entry = run["results"][0]["configurations"][1]
        entry |= {"parameters": {"amateur": ".evidence/qa"}, "others": {"amateur": {"adapters": [adapter]}}}
        run["results"][0]["model"] = {"name": "small", "fingerprint": "f"}

    def drawn() -> str:
        (tmp_path / "three.json").write_text(json.dumps({"part": "three", "runs": kept}))
        return draw("<!-- part: three -->\n<!-- end -->", tmp_path)

    assert "Its commands read different weights of `qa`; with `ANEW=1` all are run with the same.\n" in drawn()
    kept[1]["results"][0]["configurations"][1]["others"]["amateur"]["adapters"] = ["one"]
    assert "different weights" not in drawn()
    kept[1]["results"][0]["model"] = {"name": "small", "fingerprint": "g"}
    kept[1]["results"][0]["versions"]["torch"] = "3"
    assert "different weights of `small`;" in drawn()
    assert "; transformers 5, torch 2 and 3; " in drawn()


def test_processors_and_numbers_of_documents_of_a_part_are_all_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (Step(("eval", "a"), "de", ("greedy",)), Step(("eval", "b"), "fr", ("greedy", "LOL")))
    monkeypatch.setattr(page_module, "PARTS", {"two": Part(steps, COLUMNS)})
    kept = [run_of(steps[0], [], "an old one"), run_of(steps[1], [0.5], "a new one")]
    (tmp_path / "two.json").write_text(json.dumps({"part": "two", "runs": kept}))
    assert "; 9 documents; " in (page := draw("<!-- part: two -->\n<!-- end -->", tmp_path))
    assert "; an old one and a new one; " in page
    kept[0]["results"][0]["counts"]["evaluated"] = 120
    (tmp_path / "two.json").write_text(json.dumps({"part": "two", "runs": kept}))
    assert "; 9 to 120 documents a language; " in draw("<!-- part: two -->\n<!-- end -->", tmp_path)


@pytest.mark.usefixtures("small")
def test_what_was_kept_is_drawn_though_a_later_command_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, fails = Step(("eval", "a"), rows=("greedy", "LOL")), Step(("eval", "truth"), rows=("greedy",))
    for module in (running, page_module, command_module):
        monkeypatch.setattr(module, "PARTS", {"begun": Part((done, fails), COLUMNS)})
    page = tmp_path / "evidence.md"
    page.write_text("<!-- part: begun -->\n<!-- end -->")
    (tmp_path / "begun.json").write_text(json.dumps({"part": "begun", "runs": [run_of(done, [0.5])]}))
    monkeypatch.setattr(command_module, "PAGE", page)
    monkeypatch.setattr(command_module, "RESULTS", tmp_path)
    with pytest.raises(OptionError, match=r"decoding eval truth .* ended with 2"):
        evidence_command(["begun"], "data", str(tmp_path / "work"))
    assert "| LOL |" in page.read_text()


@pytest.mark.usefixtures("small")
def test_a_part_that_has_run_is_told_and_what_runs_nothing_names_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Step(("eval", "truth"), rows=("greedy", "LOL"))
    parts = {"done": Part((done,), COLUMNS), "makes": Part((Step(("induce", "--output", "{work}/adapter")),))}
    for module in (running, page_module, command_module):
        monkeypatch.setattr(module, "PARTS", parts)
    page, work = tmp_path / "evidence.md", str(tmp_path)
    page.write_text("<!-- part: done -->\n<!-- end -->")
    (tmp_path / "done.json").write_text(json.dumps({"part": "done", "runs": [run_of(done, [0.5])]}))
    monkeypatch.setattr(command_module, "PAGE", page)
    monkeypatch.setattr(command_module, "RESULTS", tmp_path)
    evidence_command(["done"], "data", work)
    assert capsys.readouterr().out == "done: all of it has run; --anew runs it again\n"
    with pytest.raises(OptionError, match=r"decoding eval truth .* ended with 2"):
        evidence_command(["done"], "data", work, anew=True)
    with pytest.raises(OptionError, match="--draw draws all tables and runs no part"):
        evidence_command(["done"], "data", work, drawn=True)
    evidence_command(None, "data", work)
    assert capsys.readouterr().out == "done  ran\nmakes\n"
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "adapter.command").write_text(parts["makes"].steps[0].command)
    evidence_command(None, "data", work)
    assert capsys.readouterr().out == "done  ran\nmakes  ran\n"
