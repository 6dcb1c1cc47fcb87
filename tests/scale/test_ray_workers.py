"""``decoding eval --engine ray``: workers are ranks, and one that dies is replaced."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_evaluation import toy_command

from decoding.errors import DecodingWarning, InputError, ModelError, OptionError
from decoding.evals import miniature, ray_workers
from decoding.evals.cli import main
from decoding.evals.ray_workers import run_on_ray

ray = pytest.importorskip("ray", reason="Ray is an optional extra")

PATH = os.pathsep.join(filter(None, sys.path))  # so that workers find what this process finds


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # or beside other tests its processes get a thirtieth of a core
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # no process before one is asked for
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            runtime_env={"worker_process_setup_hook": "fresh_process.prepare"},
        )  # fmt: skip
        yield
        ray.shutdown()


def results_in(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("results_*.json"))]
    return [{name: value for name, value in results.items() if name != "times"} for results in found]


def test_a_bad_document_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"toy, document d5: its answer is too long \(--skip-bad"):
        run_on_ray(toy_command, {"output": tmp_path, "bad": 5}, workers=1, gpus_per_worker=0)


def test_a_rank_whose_workers_keep_dying_is_given_up() -> None:
    rank, started = ray_workers._Rank(1, 2), []
    for _ in range(ray_workers.DEATHS - 1):
        with pytest.warns(DecodingWarning, match="worker 1 of 2 died after 0 documents; another goes on"):
            ray_workers._replaced(rank, RuntimeError("killed"), started.append)
    with pytest.raises(ModelError, match=r"worker 1 of 2 died 3 times without finishing a document \(killed\)"):
        ray_workers._replaced(rank, RuntimeError("killed"), started.append)
    assert started == [rank, rank]


@pytest.mark.skipif(not (miniature.folder("expert") / "config.json").is_file(), reason="the expert is not here")
@pytest.mark.usefixtures("same_last_bits")
def test_two_workers_give_what_one_process_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "truthfulqa", "--miniature", "--limit", "10", "--strategy", "greedy", "--strategy", "dola"]
    assert main([*command, "--output", str(tmp_path / "alone")]) == 0
    alone = capsys.readouterr()
    assert main([*command, "--output", str(tmp_path / "ray"), "--engine", "ray", "--workers", "2"]) == 0
    assert capsys.readouterr() == alone
    assert results_in(tmp_path / "ray") == results_in(tmp_path / "alone")
    one, other = (tmp_path / folder / "samples_truthfulqa_miniature.jsonl" for folder in ("alone", "ray"))
    assert one.read_bytes() == other.read_bytes()
    assert not list((tmp_path / "ray").glob("*rank*"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, though the tests be run in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_worker_that_is_killed_is_replaced_and_ctrl_c_keeps_the_samples_of_both(tmp_path: Path) -> None:
    """And nothing is done twice."""
    alone, output = tmp_path / "alone", tmp_path / "ray"
    toy_command(alone)

    def kept() -> int:
        """Samples so far, two a document."""
        return sum(len(path.read_text().splitlines()) for path in output.glob("samples_*"))

    def interrupt() -> None:
        while kept() < 10:  # the first worker has done three documents
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    died = pytest.warns(DecodingWarning, match=r"worker 0 of 1 died after \d documents; another goes on")
    told = pytest.warns(DecodingWarning, match="interrupted; the samples of all workers are kept")
    arguments = {"output": output, "fatal": 3, "deaths": 1, "seconds": 0.5}
    with died, told, pytest.raises(KeyboardInterrupt):
        run_on_ray(toy_command, arguments, workers=1, gpus_per_worker=0)
    assert (output / "deaths.txt").read_text() == "0"
    assert 10 <= kept() < 40
    for _ in range(600):  # the second worker, which is being killed, may still have its file
        with contextlib.suppress(OptionError):
            toy_command(output)  # one process takes up what Ray left off
            break
        time.sleep(0.05)
    assert results_in(output) == results_in(alone)
    one, other = (folder / "samples_toy.jsonl" for folder in (alone, output))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "rai"], "--engine 'rai'; did you mean ray"),
        (["--workers", "2"], "expected with --engine ray"),
        (["--engine", "ray", "--workers", "2"], "2 workers share the documents: they need --output DIR"),
        (["--engine", "ray", "--gpus-per-worker", "4096"], "--gpus-per-worker 4096: the cluster has"),
        (["--engine", "ray", "--tp-plan", "auto"], "a Ray worker is one process"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "truthfulqa", "--miniature", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_ray_and_among_ranks_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(OptionError, match="run it without torchrun or srun"):
            run_on_ray(toy_command, {"output": tmp_path}, workers=2, gpus_per_worker=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"--engine ray needs Ray: pip install 'contrastive-decoding\[ray\]'"):
        run_on_ray(toy_command, {"output": tmp_path}, workers=2, gpus_per_worker=0)
