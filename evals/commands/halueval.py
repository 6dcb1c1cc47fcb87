"""``decoding eval halueval``."""

from __future__ import annotations

from typing import Annotated

import typer

from decoding.cli.options import expanded
from decoding.errors import InputError, OptionError, nearest
from decoding.evals.engine.options import ComparisonOptions
from decoding.evals.tasks.halueval.data import KINDS, PROMPTS

__all__ = ["halueval_command"]


def _one_of(known: tuple[str, ...], option: str, given: str | None) -> str | None:
    if given is not None and given not in known:
        raise OptionError(f"unknown {option} {given!r}{nearest(given, known)}")
    return given


def _known_task(given: str | None) -> str | None:
    return _one_of(tuple(KINDS), "--task", given)


def _known_prompt(given: str) -> str | None:
    return _one_of(PROMPTS, "--prompt", given)


@expanded
def halueval_command(
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="HaluEval's qa_data.json, dialogue_data.json, summarization_data.json or general_data.json, or a hub "
            "name.",
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", callback=_known_task, help=f"One of {', '.join(KINDS)}; by default told by the columns."
        ),
    ] = None,
    knowledge: Annotated[
        bool, typer.Option(help="Put the knowledge of the QA and dialogue files before the question or dialogue.")
    ] = True,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="STYLE",
            callback=_known_prompt,
            help="plain (Question: ...), or halueval: names as in the authors' prompts (#Question#: ...).",
        ),
    ] = "plain",
    options: ComparisonOptions,
) -> None:
    """HaluEval: how well likelihood tells right answers, responses and summaries from hallucinated ones.

    Example: decoding eval halueval --data qa_data.json --strategy greedy --strategy dola --output results
    """
    from decoding.evals.engine.prepared import prepared, report
    from decoding.evals.tasks.halueval.data import load
    from decoding.evals.tasks.halueval.discrimination import HaluEval
    from decoding.evals.tasks.likelihood import note_cuts

    responses, left_out = load(data, task, options.skip_bad)
    used = responses[: options.limit]
    for kind in ("right", "hallucinated"):
        if not any(getattr(response, kind) for response in used):
            raise InputError(f"{data}: none of the {len(used)} documents has a {kind} text to tell from others")
    ready = prepared(options)
    evaluation = HaluEval(
        ready.model, ready.tokenizer, responses, knowledge=knowledge, prompt=prompt, left_out=left_out
    )
    results = ready.run(evaluation, ready.configurations(evaluation.settings, generation_config=None))
    note_cuts(results, evaluation.lost)
    report(results, evaluation.figures, options.json, options.holm)
