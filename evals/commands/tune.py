"""``decoding tune``: the evaluations, with strategies whose values are chosen on some of the documents."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from decoding.cli.options import with_signature
from decoding.evals.engine.options import Tuning

__all__ = ["VALIDATION", "tuning", "without_tuning"]

VALIDATION = 100  # documents to choose on, unless told otherwise

_OPTIONS = tuple(field.name for field in fields(Tuning))


def without_tuning(command: Callable[..., None]) -> Callable[..., None]:
    """Return an evaluation command without the options of ``decoding tune``."""

    @functools.wraps(command)
    def evaluated(**given: Any) -> None:
        command(**given, **dict.fromkeys(_OPTIONS))

    parameters = inspect.signature(command, eval_str=True).parameters.values()
    return with_signature(evaluated, [parameter for parameter in parameters if parameter.name not in _OPTIONS])


def tuning(command: Callable[..., None], what: str, example: str) -> Callable[..., None]:
    """Return an evaluation command as one of ``decoding tune``.

    Args:
        command: with the options of :class:`decoding.evals.engine.options.Tuning`.
        what: the evaluation, in its help page.
        example: of a command line, there.
    """

    @functools.wraps(command)
    def tuned(**given: Any) -> None:
        command(**given)

    tuned.__doc__ = (
        f"{what}: choose the values of strategies on some documents, report on the others.\n\n"
        "A parameter has several values where | stands between: --strategy 'dola:layers=low|high'. One that is not "
        "given has those of a small grid. Of each --strategy the best is chosen.\n\n"
        f"Example: {example}"
    )
    parameters = [
        parameter.replace(default=VALIDATION) if parameter.name == "validation" else parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
    ]
    return with_signature(tuned, parameters)
