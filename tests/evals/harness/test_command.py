"""``decoding lm-eval``."""

from __future__ import annotations

import functools
import json
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from decoding import OptionError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.commands.lm_eval import TASKS, completed

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "truthfulqa" / "mc_task.json"
OWN = ["--include_path", str(TASKS), "--model", "decoding"]


@pytest.fixture(scope="module", autouse=True)
def indexed_once() -> Iterator[None]:
    """Let lm-eval read the files of TruthfulQA alone, and once, instead of those of its 14,000 tasks, which takes 6 s.

    Tasks of a folder that is included go before its own of the same name.
    """
    import lm_eval.tasks
    from lm_eval.tasks._index import TaskIndex

    build, indices = TaskIndex.build, {}
    of_lm_eval = Path(lm_eval.tasks.__file__).parent

    def kept(paths: Sequence[Path], **options: Any) -> Any:
        assert of_lm_eval in paths
        paths = [path / "truthfulqa" if path == of_lm_eval else path for path in paths]
        key = (*paths, *options.items())
        if key not in indices:
            indices[key] = pickle.dumps(build(paths, **options))
        return pickle.loads(indices[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(kept))
        yield


def test_it_adds_its_model_and_tasks_to_what_lm_eval_is_given(tmp_path: Path) -> None:
    assert completed([]) == []
    assert completed(["--help"]) == ["--help"]
    assert completed(["--tasks", "x"]) == ["run", *OWN, "--tasks", "x"]
    assert completed(["run", "--tasks", "x", "--model", "hf"]) == ["run", *OWN, "--tasks", "x", "--model", "hf"]
    assert completed(["ls", "tasks"]) == ["ls", "--include_path", str(TASKS), "tasks"]
    assert completed(["--config", "x.yaml"]) == ["run", "--model", "decoding", "--config", "x.yaml"]
    assert completed(["--include_path=mine"]) == ["run", "--model", "decoding", "--include_path=mine"]
    metadata = json.dumps({"truthfulqa": str(tmp_path / "a, b.json")})
    assert completed(["--tasks", "x"], tmp_path / "a, b.json") == ["run", *OWN, "--metadata", metadata, "--tasks", "x"]
    with pytest.raises(OptionError, match="lm-eval takes one folder of tasks"):
        completed(["--include_path", "mine"], tmp_path / "a.json")


def _lm_eval(folder: Path, *arguments: str) -> dict[str, Any]:
    before = sys.argv
    assert main(["lm-eval", *arguments, "--batch_size", "2", "--output_path", str(folder)]) == 0
    assert sys.argv is before
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())


def test_lol_on_local_truthfulqa_and_on_a_task_that_generates(tmp_path: Path) -> None:
    file = SHARED
    if not file.is_file():
        file = tmp_path / "questions.json"
        rows = [
            {
                "question": question.question,
                "mc1_targets": {question.best_answer: 1} | dict.fromkeys(question.incorrect_answers, 0),
                "mc2_targets": dict.fromkeys(question.correct_answers, 1)
                | dict.fromkeys(question.incorrect_answers, 0),
            }
            for question in miniature.questions("test")[:2]
        ]
        file.write_text(json.dumps(rows))
    # In float32: few CPUs have products of bfloat16, and without them these take ten times as long. The test below has
    # the dtype of the folder.
    results = _lm_eval(
        tmp_path / "out", "--truthfulqa", str(file), "--",
        "--tasks", "truthfulqa_mc1_local,truthfulqa_mc2_local,miniature_gen",
        "--model_args", "pretrained=expert,strategy=lol,amateur=induced,lower_layers=0.5;0.75,guidance=default"
        ",dtype=float32",
        "--gen_kwargs", "max_gen_toks=8", "--limit", "2",
    )  # fmt: skip
    assert results["config"]["strategy"].startswith("lol(amateur=induced, lower_layers=0.5,0.75, guidance=default,")
    figures = results["results"]
    assert figures["truthfulqa_mc1_local"]["acc,none"] in (0.0, 0.5, 1.0)
    assert 0 < figures["truthfulqa_mc2_local"]["acc,none"] < 1
    assert figures["miniature_gen"]["exact_match,none"] in (0.0, 0.5, 1.0)


def test_contrastive_search_on_tasks_that_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = ["--truthfulqa", str(SHARED)] if SHARED.is_file() else []
    if local:
        from rouge_score import scoring

        # It resamples a single text's figures a thousand times, which are the same every time.
        monkeypatch.setattr(scoring, "BootstrapAggregator", functools.partial(scoring.BootstrapAggregator, n_samples=1))
    results = _lm_eval(
        tmp_path, *local, "--", "--tasks", "miniature_gen" + (",truthfulqa_gen_local" if local else ""),
        "--model_args", "pretrained=expert,strategy=contrastive-search,penalty_alpha=0.4,top_k=4",
        "--gen_kwargs", "max_gen_toks=8", "--limit", "1",
    )  # fmt: skip
    assert results["config"]["strategy"] == "contrastive-search(penalty_alpha=0.4, top_k=4)"
    assert results["results"]["miniature_gen"]["exact_match,none"] in (0.0, 1.0)
    if local:
        assert results["results"]["truthfulqa_gen_local"]["rouge1_max,none"] >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--truthfulqa", "absent.json", "--", "--tasks", "truthfulqa_mc1_local"],
            "absent.json: there is no such file or folder",
        ),
        (["--", "--tasks", "miniature_mc1", "--model_args", "pretrained=expert,strategy=lool"], "did you mean lol"),
        (
            ["--", "--tasks", "miniature_mc1", "--limit", "1", "--model_args", "strategy=contrastive-search"],
            "no score to a given token",  # found inside the task
        ),
        (["--", "--tasks", "miniature_mc9"], "--tasks: Tasks not found: miniature_mc9; decoding lm-eval -- ls tasks"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["lm-eval", *arguments]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("decoding: ")]
    assert message in line


def test_without_arguments_it_shows_those_of_lm_eval(capfd: pytest.CaptureFixture[str]) -> None:
    main(["lm-eval"])
    assert "lm-eval run --model" in capfd.readouterr().out
    assert main(["lm-eval", "--help"]) == 0
    assert "Example: decoding lm-eval" in capfd.readouterr().out
