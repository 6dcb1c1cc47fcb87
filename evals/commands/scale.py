"""``--engine ray``: the options with which an evaluation runs on the workers of Ray."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from decoding.cli.options import with_signature
from decoding.errors import OptionError

__all__ = ["GpusPerWorker", "Workers", "at_scale"]

Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="With --engine ray; by default as many as the GPUs suffice for.")
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0, metavar="N", help="With --engine ray; may be a fraction; by default 1 where there are GPUs."),
]


def at_scale(command: Callable[..., None]) -> Callable[..., None]:
    """Give an evaluation command the options ``--workers`` and ``--gpus-per-worker`` of its ``--engine ray``."""

    @functools.wraps(command)
    def scaled(*, workers: int | None, gpus_per_worker: float | None, **arguments: Any) -> None:
        if arguments["engine"] == "ray":
            from decoding.evals.ray_workers import run_on_ray

            return run_on_ray(command, arguments, workers, gpus_per_worker)
        if workers is not None or gpus_per_worker is not None:
            raise OptionError("--workers and --gpus-per-worker: expected with --engine ray")
        command(**arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter("workers", keyword, default=None, annotation=Workers),
        inspect.Parameter("gpus_per_worker", keyword, default=None, annotation=GpusPerWorker),
    ]
    return with_signature(scaled, [*inspect.signature(command, eval_str=True).parameters.values(), *added])
