"""``make bench``: which benchmarks it runs, with what, and what it says of one that fails."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from decoding.models.releases import RELEASES, folder_of

ROOT = Path(__file__).parents[2]
PARTS = [
    "startup", "contrastive_search", "contrast", "long_context", "isotropy", "truthfulqa_mc", "real_models",
    "linear_products", "drafts", "draft_costs", "draft_lengths",
]  # fmt: skip
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "cpu.sh").is_file() or shutil.which("bash") is None or shutil.which("make") is None,
    reason="the repository's benchmarks, bash and make are not all here",
)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that says what it was to run, and fails on some."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "ran $*"\ncase "$1" in *${FAILING:-none}.py) exit 3;; esac\n')
    script.chmod(0o755)
    return script


def ran(python: Path, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    results = python.parent / "results"
    variables = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "RESULTS": str(results), **environment}
    command = [str(ROOT / "benchmarks" / "cpu.sh"), *parts]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30)


def calls(finished: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.removeprefix("ran ") for line in finished.stdout.splitlines() if line.startswith("ran ")]


def test_every_cpu_benchmark_is_run_and_writes_its_own_file(python: Path) -> None:
    finished = ran(python)
    assert (finished.returncode, finished.stderr) == (0, "")
    results = python.parent / "results"
    *once, real, products, drafts, costs, lengths = [
        f"benchmarks/{part}.py --output {results}/{part}.csv" for part in PARTS
    ]
    again = f"benchmarks/truthfulqa_mc.py --questions 4 --prompt-tokens 600 --output {results}/truthfulqa_mc.csv"
    assert calls(finished) == [
        *once,
        again,
        real,
        products,
        drafts,
        costs,
        lengths.replace("--", f"--costs {results}/draft_costs.csv --", 1),
    ]
    assert all((ROOT / call.split()[0]).is_file() for call in calls(finished))


def test_a_part_that_fails_is_named_at_the_end_and_the_others_run(python: Path) -> None:
    finished = ran(python, FAILING="contrast")
    assert finished.returncode == 1
    assert len(calls(finished)) == len(PARTS) + 1
    assert finished.stdout.splitlines()[-1] == "failed or incomplete: contrast"


@pytest.mark.parametrize("part", ["real_models", "linear_products"])
def test_without_a_fetched_model_the_real_models_are_skipped(part: str, tmp_path: Path) -> None:
    finished = ran(Path(sys.executable), part, DECODING_CACHE=str(tmp_path), RESULTS=str(tmp_path / "results"))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines()[1:-1] == [
        "skipped: no model was fetched (decoding fetch NAME), and --models names none"
    ]
    assert list((tmp_path / "results").iterdir()) == []


def test_the_real_models_are_those_that_were_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODING_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fetched_models = runpy.run_path(str(ROOT / "benchmarks" / "real_models.py"))["fetched_models"]
    folders = [folder_of(name) for name in RELEASES]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[-1] / "config.json").write_text("{}")
    assert fetched_models() == [folders[-1].name]  # a folder alone is what an interruption may leave
    (folders[0] / "config.json").write_text("{}")
    assert fetched_models() == [folders[0].name, folders[-1].name]


def test_parts_are_chosen_and_a_peer_is_measured_where_there_is_one(python: Path) -> None:
    finished = ran(python, "isotropy", "contrastive_search", PEER="/peer/python")
    assert [call.split()[0] for call in calls(finished)] == [
        "benchmarks/isotropy.py",
        "benchmarks/contrastive_search.py",
    ]
    assert "--peer-python /peer/python" in calls(finished)[1]


def test_a_part_that_is_none_is_one_line(python: Path) -> None:
    finished = ran(python, "isotropy", "speed")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == f"cpu.sh: speed: expected one of {' '.join(PARTS)}\n"


def test_make_hands_over_parts_and_peer() -> None:
    command = ["make", "-n", "-C", str(ROOT), "bench", "PART=contrast isotropy", "PEER=/peer/python"]
    last = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    (line,) = [text for text in last if "cpu.sh" in text]
    assert line.endswith('PEER="/peer/python" benchmarks/cpu.sh contrast isotropy')
