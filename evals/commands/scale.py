"""``--engine ray``: the options with which an evaluation runs on the workers of Ray."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from decoding.cli.options import with_signature
from decoding.errors import OptionError, nearest

__all__ = ["ENGINES", "Engine", "GpusPerWorker", "Workers", "at_scale"]

ENGINES = ("local", "ray")


def _known_engine(given: str) -> str:
    if given not in ENGINES:
        raise OptionError(f"--engine {given!r}{nearest(given, ENGINES)}")
    return given


Engine = Annotated[
    str,
    typer.Option(
        metavar="local|ray", callback=_known_engine, help="ray: Ray workers share the documents, with a model each."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="With --engine ray; by default as many as the GPUs suffice for.")
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0, metavar="N", help="With --engine ray; may be a fraction; by default 1 where there are GPUs."),
]


def at_scale(command: Callable[..., None]) -> Callable[..., None]:
    """Give an evaluation command the options ``--engine``, ``--workers`` and ``--gpus-per-worker``."""

    @functools.wraps(command)
    def scaled(*, engine: str, workers: int | None, gpus_per_worker: float | None, **arguments: Any) -> None:
        if engine == "ray":
            from decoding.evals.ray_workers import run_on_ray

            return run_on_ray(command, arguments, workers, gpus_per_worker)
        if workers is not None or gpus_per_worker is not None:
            raise OptionError("--workers and --gpus-per-worker: expected with --engine ray")
        command(**arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter("engine", keyword, default="local", annotation=Engine),
        inspect.Parameter("workers", keyword, default=None, annotation=Workers),
        inspect.Parameter("gpus_per_worker", keyword, default=None, annotation=GpusPerWorker),
    ]
    return with_signature(scaled, [*inspect.signature(command, eval_str=True).parameters.values(), *added])
