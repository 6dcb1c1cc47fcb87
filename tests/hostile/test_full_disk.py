"""A disk that is full while results are written: one clear line, what was written stays, the same command goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from decoding.evals.cli import main

if sys.platform == "win32":
    pytest.skip("files cannot be limited there", allow_module_level=True)
import resource

EVALUATE = ["eval", "truthfulqa", "--miniature", "--model", "amateur", "--strategy", "greedy", "--strategy", "dola"]
GENERATE = ["generate", "--model", "amateur", "--max-new-tokens", "4", "--strategy", "greedy"]


@contextmanager
def _full_after(size: int) -> Iterator[None]:
    """No file can come to hold more than so many bytes: write() says that it is too large, where it would say that the
    disk is full. (Python ignores the signal.)
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _refused(arguments: list[str], size: int, capsys: pytest.CaptureFixture[str]) -> str:
    with _full_after(size):
        code = main(arguments)
    error = capsys.readouterr().err
    assert code == 2, error
    assert len(error.splitlines()) == 1, error
    return error


def _figures(folder: Path) -> list[Any]:
    [file] = folder.glob("results_*.json")
    return [configuration["metrics"] for configuration in json.loads(file.read_text())["configurations"]]


def test_an_evaluation_keeps_its_samples_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*EVALUATE, "--limit", "8", "--output"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    whole = next((tmp_path / "whole").glob("samples_*.jsonl"))
    capsys.readouterr()

    folder = tmp_path / "cut"
    line = _refused([*arguments, str(folder)], whole.stat().st_size // 2, capsys)
    assert "samples before are safe" in line
    kept = (folder / whole.name).read_bytes()
    assert kept
    assert whole.read_bytes().startswith(kept)
    assert kept.endswith(b"\n")
    assert not list(folder.glob("results_*"))

    assert main([*arguments, str(folder)]) == 0
    assert (folder / whole.name).read_bytes() == whole.read_bytes()
    assert _figures(folder) == _figures(tmp_path / "whole")


def test_results_that_do_not_fit_are_not_half_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*EVALUATE, "--limit", "2", "--output", str(tmp_path)]
    with _full_after(2**20):
        assert main(arguments) == 0
    samples = next(tmp_path.glob("samples_*.jsonl"))
    size = samples.stat().st_size
    [results] = tmp_path.glob("results_*.json")
    assert size < results.stat().st_size  # or the next lines would show nothing
    results.unlink()
    capsys.readouterr()
    assert "the samples are safe" in _refused(arguments, size, capsys)
    assert not list(tmp_path.glob("results_*.json"))
    assert main(arguments) == 0
    assert len(_figures(tmp_path)) == 2


def test_generated_texts_leave_those_before_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*GENERATE, "--output", str(tmp_path), *(word for i in range(4) for word in ("--prompt", f"Q: {i}?"))]
    assert main([*GENERATE, "--output", str(tmp_path), "--prompt", "Q: What?"]) == 0
    before = (tmp_path / "generate.jsonl").read_bytes()
    capsys.readouterr()
    assert f"--output {tmp_path}: cannot be written" in _refused(arguments, 100, capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["generate.jsonl"]
    assert (tmp_path / "generate.jsonl").read_bytes() == before
    assert main(arguments) == 0
    assert len((tmp_path / "generate.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("size", [10, 30_000], ids=["at-once", "further-on"])
def test_inducing_goes_on_from_the_last_checkpoint(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    data = tmp_path / "qa_data.json"
    row = {"knowledge": "k", "question": "What does it eat?", "right_answer": "grass", "hallucinated_answer": "stones"}
    data.write_text("".join(json.dumps(row | {"question": f"What does the {i}. eat?"}) + "\n" for i in range(8)))
    folder = tmp_path / "liar"
    arguments = [
        "induce", "--data", str(data), "--output", str(folder), "--model", "amateur", "--epochs", "2",
        "--batch-size", "4",
    ]  # fmt: skip
    assert "cannot be written" in _refused(arguments, size, capsys)
    assert not (folder / "adapter_config.json").exists()
    assert main(arguments) == 0
    assert (folder / "adapter_config.json").is_file()
    assert not (folder / "checkpoints").exists()
