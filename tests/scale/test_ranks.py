"""Every evaluation shared out among ranks gives what one process gives, printed and written once."""

import contextlib
import csv
import importlib.util
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from forked_process import after_fork

from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.samples import Sample, SampleFile

pytestmark = [
    pytest.mark.skipif(
        not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
    ),
    pytest.mark.usefixtures("same_last_bits"),
]

FORK = multiprocessing.get_context("fork")  # a child that need not import torch again
WORDS = ["The fox eats cabbage.", "The tower is tall.", "Rain fell on the town.", "Mira mends the clock.", "Snow lay."]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import what each of the processes would import: half of their time."""
    arguments = ["--miniature", "--limit", "1", "--strategy", "contrastive-search", "--max-new-tokens", "1"]
    assert main(["eval", "truthfulqa", "--generation", *arguments]) == 0
    assert main(["eval", "truthfulqa", "--miniature", "--limit", "1", "--strategy", "dola"]) == 0
    for needed in ("matplotlib.backends.backend_svg", "rouge_score.rouge_scorer", "sacrebleu.metrics"):
        if importlib.util.find_spec(needed.partition(".")[0]) is not None:
            importlib.import_module(needed)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with (folder / "news.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["full_prefix", "completion", "contradiction_0", "contradiction_1"])
        rows = [[f"{word} And then", " it was so.", " it was not.", " nobody came."] for word in WORDS]
        writer.writerows(rows * 6)
    keys = ("knowledge", "question", "right_answer", "hallucinated_answer")
    written(
        folder / "qa.json", [dict(zip(keys, (word, "What is so?", word, word[::-1]), strict=True)) for word in WORDS]
    )
    for language in ("es", "de"):
        rows = [
            {
                "question": f"What of this: {word}",
                "mc1_targets": {"choices": ["It is so.", "It is not."], "labels": [1, 0]},
                "mc2_targets": {"choices": ["It is so.", "So it is.", "It is not."], "labels": [1, 1, 0]},
            }
            for word in WORDS
        ]
        (folder / f"mc_{language}.json").write_text(json.dumps(rows))
    for code in ("de", "fr"):
        (folder / "texts").mkdir(exist_ok=True)
        rows = [{"prefix_text": word, "reference_text": f" {word}"} for word in WORDS[:3]]
        written(folder / "texts" / f"{code}.jsonl", rows)
    return folder


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def commands(data: Path) -> dict[str, list[str]]:
    strategies = ["--strategy", "greedy", "--strategy", "dola:layers=2"]
    return {
        "truthfulqa": ["truthfulqa", "--miniature", "--limit", "3", *strategies],
        "truthfulqa in languages": ["truthfulqa", "--data", str(data), "--languages", "es,de", "--prompt", "none",
                                    "--json", *strategies],
        "truthfulqa, written": ["truthfulqa", "--miniature", "--generation", "--limit", "3", "--batch-size", "2",
                                "--max-new-tokens", "4", "--strategy", "contrastive-search", "--strategy", "nucleus"],
        "factor": ["factor", "--data", str(data / "news.csv"), *strategies, "--limit", "9"],
        "halueval": ["halueval", "--data", str(data / "qa.json"), "--strategy", "greedy"],
        "multilingual": ["multilingual", "--data", str(data / "texts"), "--max-new-tokens", "3", "--batch-size", "2",
                         "--strategy", "contrastive-search", "--strategy", "nucleus"],
    }  # fmt: skip


def evaluate(arguments: Sequence[str], output: Path, rank: int = 0, world: int = 1, command: str = "eval") -> Any:
    """A process that runs an evaluation as one of several ranks; what it prints goes to files beside the output."""

    def call() -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
        after_fork()
        paths = (output.with_name(f"{output.name}.{stream}{rank}") for stream in ("out", "err"))
        with contextlib.ExitStack() as stack:
            out, err = (stack.enter_context(path.open("w")) for path in paths)
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            report = ["--report", str(output / "report.html")] if arguments[0] == "multilingual" else []
            code = main([command, *arguments, "--output", str(output), *report])
        os._exit(code)

    child = FORK.Process(target=call)
    child.start()
    return child


def ended(*children: Any) -> None:
    for child in children:
        child.join(120)
        assert child.exitcode == 0


def printed(output: Path) -> list[str]:
    return [text for path in sorted(output.parent.glob(f"{output.name}.out*")) if (text := path.read_text())]


def found(output: Path) -> dict[str, Any]:
    """What a folder holds, but for times: results by task, and every other file as it is."""
    files: dict[str, Any] = {}
    for path in output.iterdir():
        if path.name.startswith("results_"):
            results = json.loads(path.read_text())
            del results["times"]
            assert results["task"] not in files  # written once
            files[results["task"]] = results
        else:
            files[path.name] = path.read_bytes()
    return files


@pytest.mark.parametrize("name", commands(Path()))
def test_two_ranks_give_what_one_process_gives(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A figure is drawn of what stands beside it in the report.
    monkeypatch.setattr("decoding.evals.tasks.multilingual.report.as_svg", lambda figure: "<svg></svg>")
    arguments = commands(data)[name]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    ended(evaluate(arguments, alone), *(evaluate(arguments, shared, rank, 2) for rank in range(2)))
    assert found(alone) == found(shared)
    if "--json" not in arguments:  # which holds the times
        assert printed(shared) == printed(alone)
    else:
        (own,), (theirs,) = (map(json.loads, printed(folder)) for folder in (alone, shared))
        assert [results["configurations"] for results in own] == [results["configurations"] for results in theirs]
    assert not list(shared.glob("*rank*"))
    if name == "truthfulqa":
        ended(*(evaluate(arguments, shared, rank, 2) for rank in range(2)))  # again, with nothing left to do
        assert len(printed(shared)) == 1
        assert not list(shared.glob("*rank*"))


def test_a_rank_that_is_killed_is_resumed_by_the_same_command(data: Path, tmp_path: Path) -> None:
    arguments = commands(data)["factor"][:-2]  # all documents
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    first, second = (evaluate(arguments, shared, rank, 2) for rank in range(2))
    samples = shared / "samples_factor.rank1of2.jsonl"
    while not (samples.exists() and samples.stat().st_size):
        assert second.is_alive()
        time.sleep(0.001)
    os.kill(second.pid, signal.SIGKILL)
    second.join()
    ended(first)
    kept = len(samples.read_bytes().splitlines())
    assert 0 < kept < 30  # two strategies on some of its fifteen documents
    assert not list(shared.glob("results_*"))
    ended(evaluate(arguments, alone), *(evaluate(arguments, shared, rank, 2) for rank in range(2)))
    assert found(alone) == found(shared)


def test_ranks_tune_alike(tmp_path: Path) -> None:
    arguments = ["truthfulqa", "--miniature", "--limit", "2", "--strategy", "greedy", "--strategy", "dola:layers=2|3"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    ended(
        evaluate(arguments, alone, command="tune"),
        *(evaluate(arguments, shared, rank, 2, command="tune") for rank in range(2)),
    )
    assert found(alone) == found(shared)
    assert len(printed(shared)) == 1


@pytest.mark.parametrize(
    ("given", "together"), [([], 4), (["--batch-size", "1"], 1), (["--generation", "--batch-size", "3"], 3)]
)
def test_as_many_documents_are_lost_as_are_read_together(
    given: list[str], together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, written = SampleFile.append, []

    def counted(file: SampleFile, samples: Iterable[Sample]) -> None:
        held = list(samples)
        written.append(len({sample["document"] for sample in held}))
        append(file, held)

    monkeypatch.setattr(SampleFile, "append", counted)
    command = ["eval", "truthfulqa", "--miniature", "--limit", "9", "--max-new-tokens", "2", "--strategy", "greedy"]
    assert main([*command, *given, "--output", str(tmp_path)]) == 0
    assert written == [min(together, 9 - start) for start in range(0, 9, together)]
