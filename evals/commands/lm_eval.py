"""``decoding lm-eval``: lm-evaluation-harness's command line with this library's model class and tasks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from decoding.errors import DecodingError, OptionError, one_line
from decoding.files import expanded

__all__ = ["TASKS", "completed", "lm_eval_command"]

TASKS = Path(__file__).resolve().parents[1] / "harness" / "tasks"


def lm_eval_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- ARGUMENTS", help="Arguments of lm-eval; without any its help.", show_default=False),
    ] = None,
    truthfulqa: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TruthfulQA in any published form, for the tasks truthfulqa_..._local."),
    ] = None,
) -> None:
    r"""Run lm-evaluation-harness on a model with a strategy.

    Everything after -- goes to lm-eval. Its --model_args has the strategy and its parameters beside those of lm-eval's
    hf model; in lists of numbers write ; for the comma, which separates arguments. Tasks of this library:
    truthfulqa_mc1_local, truthfulqa_mc2_local, truthfulqa_gen_local, miniature_mc1, miniature_mc2, miniature_gen.

    Example: decoding lm-eval -- --tasks miniature_mc1,miniature_gen --model_args
    "pretrained=expert,strategy=lol,amateur=induced,lower_layers=0.5;0.75"
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise OptionError("lm-eval is not installed: pip install 'contrastive-decoding[lm-eval]'") from error
    import decoding.evals.harness.model  # noqa: F401 - registers the model class

    if truthfulqa is not None:
        from decoding.evals.tasks.truthfulqa.data import load

        load(str(truthfulqa))  # a bad file is found before a model is loaded
    with _command_line(completed(arguments or [], truthfulqa)):
        try:
            cli_evaluate()
        except ValueError as error:
            if isinstance(error, DecodingError) or not str(error).startswith("Tasks not found"):
                raise
            raise OptionError(f"--tasks: {one_line(error)}; decoding lm-eval -- ls tasks shows all") from error


def completed(given: Sequence[str], truthfulqa: Path | None = None) -> list[str]:
    """Add this command's model class, folder of tasks and file of questions to lm-eval's arguments.

    What the arguments name themselves stays.

    Raises:
        OptionError: a folder of tasks beside ``truthfulqa``, which needs this command's own; lm-eval takes one.
    """
    given = list(given)
    if not given or given[0] in ("-h", "--help"):
        return given
    subcommand, rest = (given[0], given[1:]) if not given[0].startswith("-") else ("run", given)
    names = {argument.partition("=")[0] for argument in rest}
    added: list[str] = []
    if not names & {"--include_path", "--config", "-C"}:
        added += ["--include_path", str(TASKS)]
    elif truthfulqa is not None:
        raise OptionError(
            "--truthfulqa with --include_path or --config: lm-eval takes one folder of tasks; name your own tasks by "
            "their files instead, as in --tasks my_task.yaml"
        )
    if subcommand == "run":
        added += ["--model", "decoding"]
        if truthfulqa is not None:
            added += ["--metadata", json.dumps({"truthfulqa": str(expanded(truthfulqa).resolve())})]
    return [subcommand, *added, *rest]


@contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Replace the process's arguments for the time of the block: lm-eval reads its own from there alone."""
    before, sys.argv = sys.argv, ["lm-eval", *arguments]
    try:
        yield
    finally:
        sys.argv = before
