"""Evaluations on Ray: every worker is a rank, in its own actor with its own model.

A worker runs the user's command, as a process of torchrun does: documents are divided, samples kept, runs resumed and
results written in the same way. Ray adds the machines, and it replaces a worker that dies: the new one reads the
samples of the old one and continues.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from decoding.cli.output import progress
from decoding.errors import DecodingError, DecodingWarning, ModelError, OptionError, one_line
from decoding.evals.engine.runner import on_progress
from decoding.evals.engine.task import Shard
from decoding.models.quiet import quiet

__all__ = ["run_on_ray"]

DEATHS = 3  # in a row, without a document done in between, after which a rank is given up
GPU_UNITS = 10_000  # the shares of a GPU that Ray tells apart
POLL = 0.5  # seconds between checks of the workers
# Environment variables that change models or numbers are set on the other machines too.
PASSED_ON = ("HF_", "TRANSFORMERS_", "TOKENIZERS_", "DECODING_", "OMP_NUM_THREADS", "TRITON_")


def run_on_ray(
    command: Callable[..., None], arguments: Mapping[str, Any], workers: int | None, gpus_per_worker: float | None
) -> None:
    """Run an evaluation command with its documents divided among Ray workers.

    Connects to the cluster that ``RAY_ADDRESS`` names; without one Ray is started on this machine, for this run.

    Args:
        command: a function of a module that the workers can import.
        arguments: of the command.
        workers: number of workers, each with a model; None is one for each share of the cluster's GPUs, or one.
        gpus_per_worker: may be a fraction; None is 1 where the cluster has GPUs and the command may use them.

    Raises:
        OptionError: Ray is not installed or cannot be reached, or the cluster lacks the GPUs.
        ModelError: a rank whose workers keep dying.
        DecodingError: the error of a worker.
    """
    if Shard.of_environment().world > 1:
        raise OptionError("--engine ray divides the documents itself: run it without torchrun or srun")
    if arguments.get("tp_plan"):
        raise OptionError("--tp-plan: a Ray worker is one process; use --device-map and --gpus-per-worker")
    # Ray prints notes on its processes to standard output, where results are expected.
    with contextlib.redirect_stdout(io.StringIO()), _ray(workers) as (ray, local):
        gpus = float(ray.cluster_resources().get("GPU", 0))
        if gpus_per_worker is None:
            gpus_per_worker = 1.0 if gpus and arguments.get("device") != "cpu" else 0.0
        if gpus_per_worker > gpus:
            raise OptionError(f"--gpus-per-worker {gpus_per_worker:g}: the cluster has {gpus:g}")
        world = workers or workers_that_fit(gpus, gpus_per_worker)
        if world > 1 and arguments.get("output") is None:
            raise OptionError(f"{world} workers share the documents: they need --output DIR to meet in")
        # A worker takes as many threads as it has CPUs.
        cpus = max(1, (os.cpu_count() or 1) // world) if local else 1
        place = {"num_cpus": cpus, "num_gpus": gpus_per_worker, "runtime_env": {"env_vars": _environment()}}
        ranks = [_Rank(number, world) for number in range(world)]
        _finish(ray, ranks, place, command, arguments)
    for note in dict.fromkeys(note for rank in ranks for note in rank.notes):
        warnings.warn(note, DecodingWarning, stacklevel=2)
    for rank in ranks:
        print(rank.printed, end="", flush=True)


def workers_that_fit(gpus: float, gpus_per_worker: float) -> int:
    """The number of workers that share so many GPUs; 1 where they need none.

    Counted in ten-thousandths of a GPU, as Ray counts: in floating point 1 // 0.1 is 9.
    """
    share = round(GPU_UNITS * gpus_per_worker)
    return round(GPU_UNITS * gpus) // share if share else 1


@dataclass
class _Rank:
    """A part of the documents and its present worker."""

    number: int
    world: int
    actor: Any = None
    progress: Any = None  # the future of its latest progress
    task: str = ""
    done: int = 0  # documents
    total: int = 0
    deaths: int = 0  # since the last document
    printed: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Ended:
    """The end of a worker's command: its output, its notes, and its error."""

    printed: str
    notes: list[str]
    error: DecodingError | None


class _Worker:
    """The actor: one process, one rank, one model."""

    def __init__(self, rank: int, world: int, folder: str) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
        self.folder = folder
        self.latest: tuple[str, int, int] = ("", 0, 0)

    def run(self, module: str, name: str, arguments: Mapping[str, Any]) -> _Ended:
        """Run a command as the command line does."""
        notes: list[str] = []
        error: DecodingError | None = None
        on_progress.set(self._keep_progress)
        with quiet(), contextlib.redirect_stdout(io.StringIO()) as printed:
            warnings.showwarning = lambda message, *_, **__: notes.append(str(message))
            try:
                self._go_to_folder()
                getattr(importlib.import_module(module), name)(**arguments)
            except DecodingError as raised:
                error = raised
        return _Ended(printed.getvalue(), notes, error)

    def progress(self) -> tuple[str, int, int]:
        """The present task, how many of its documents are done, and how many there are."""
        return self.latest

    def _keep_progress(self, task: str, done: int, total: int) -> None:
        self.latest = (task, done, total)

    def _go_to_folder(self) -> None:
        """Change to the folder where the command was given, for paths and for the samples."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise OptionError(
                f"a worker on {os.uname().nodename} has no folder {self.folder}: Ray's workers need the same files"
            ) from error


def _finish(
    ray: Any, ranks: list[_Rank], place: dict[str, Any], command: Callable[..., None], arguments: Mapping[str, Any]
) -> None:
    """Start a worker for each rank, replace those that die, and wait until all have ended."""
    make = ray.remote(max_concurrency=2)(_Worker).options(**place)  # a second thread returns the progress of the first
    passed = dict(arguments)

    def start(rank: _Rank) -> Any:
        rank.actor, rank.progress = make.remote(rank.number, rank.world, os.getcwd()), None
        return rank.actor.run.remote(command.__module__, command.__name__, passed)

    running: dict[Any, _Rank] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        running.update((start(rank), rank) for rank in ranks)
        with progress(*columns) as bar:
            line = bar.add_task(f"{len(ranks)} workers", total=None)
            while running:
                for future in ray.wait(list(running), timeout=POLL)[0]:
                    rank = running.pop(future)
                    try:
                        ended: _Ended = ray.get(future)
                    except ray.exceptions.RayActorError as death:
                        running[_replaced(rank, death, start)] = rank
                        continue
                    except ray.exceptions.RayTaskError as error:
                        raise _unexpected(error) from error
                    if ended.error is not None:
                        raise ended.error
                    rank.printed, rank.notes = ended.printed, ended.notes
                    ray.kill(rank.actor)  # its memory and GPUs are free for those that wait
                _ask(ray, running.values())
                _show(bar, line, ranks)
    except KeyboardInterrupt:
        warnings.warn(
            "interrupted; the samples of all workers are kept: run the same command again to go on",
            DecodingWarning,
            stacklevel=2,
        )
        raise
    finally:
        for rank in running.values():
            ray.kill(rank.actor)


def _replaced(rank: _Rank, death: Exception, start: Callable[[_Rank], Any]) -> Any:
    """Start a new worker for a rank; returns its future.

    Raises:
        ModelError: too many have died one after the other.
    """
    rank.deaths += 1
    where = f"worker {rank.number} of {rank.world}"
    if rank.deaths >= DEATHS:
        raise ModelError(
            f"{where} died {rank.deaths} times without finishing a document ({one_line(death)}); the samples are kept"
        ) from death
    warnings.warn(f"{where} died after {rank.done} documents; another goes on", DecodingWarning, stacklevel=2)
    return start(rank)


def _ask(ray: Any, ranks: Any) -> None:
    """Read the progress of workers that have reported it, and ask them again; one that is still starting has not."""
    for rank in ranks:
        if rank.progress is not None and not ray.wait([rank.progress], timeout=0)[0]:
            continue
        if rank.progress is not None:
            with contextlib.suppress(ray.exceptions.RayError):  # it has died, which its run reports too
                task, done, total = ray.get(rank.progress)
                if (task, done) != (rank.task, rank.done) and done > 0:
                    rank.deaths = 0
                rank.task, rank.done, rank.total = task, done, total
        rank.progress = rank.actor.progress.remote()


def _show(bar: Any, line: Any, ranks: list[_Rank]) -> None:
    """Show one bar, for the task that most workers are at."""
    tasks = [rank.task for rank in ranks if rank.task]
    if tasks:
        task = max(set(tasks), key=tasks.count)
        at_it = [rank for rank in ranks if rank.task == task]
        done, total = sum(rank.done for rank in at_it), sum(rank.total for rank in at_it)
        bar.update(line, description=f"{task}, {len(ranks)} workers", completed=done, total=total)


def _unexpected(error: Any) -> Exception:
    cause = getattr(error, "cause", None) or error
    if os.environ.get("DECODING_DEBUG") == "1":
        return RuntimeError(str(error))  # with the traceback of the worker
    return RuntimeError(f"{type(cause).__name__}: {one_line(cause)}")


@contextlib.contextmanager
def _ray(workers: int | None) -> Iterator[tuple[Any, bool]]:
    """Connect to Ray; yields the module, and whether Ray was started on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no statistics of this run are sent
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future behaviour of Ray, without its note
    try:
        import ray
    except ImportError as error:
        raise OptionError("--engine ray needs Ray: pip install 'contrastive-decoding[ray]'") from error
    if ray.is_initialized():
        yield ray, False
        return
    address = os.environ.get("RAY_ADDRESS")
    cpus: dict[str, Any] = (
        {} if address else {"num_cpus": max(workers or 1, os.cpu_count() or 1), "include_dashboard": False}
    )
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **cpus)
    except Exception as error:  # of many kinds, from ConnectionError to RuntimeError
        raise OptionError(f"Ray cannot be used at {address or 'this machine'} ({one_line(error)})") from error
    try:
        yield ray, not address
    finally:
        ray.shutdown()


def _environment() -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    if sys.stdout.isatty():  # tables look as they would here
        passed |= {"FORCE_COLOR": "1", "COLUMNS": str(os.get_terminal_size().columns)}
    return passed
