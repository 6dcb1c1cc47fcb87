"""``decoding eval halueval``."""

from __future__ import annotations

from typing import Annotated

import typer

from decoding.cli.options import expanded
from decoding.errors import InputError
from decoding.evals.engine.options import ComparisonOptions

__all__ = ["halueval_command"]


@expanded
def halueval_command(
    *,
    data: Annotated[
        str, typer.Option(metavar="FILE", help="HaluEval's qa_data.json or general_data.json, or a hub name.")
    ],
    knowledge: Annotated[bool, typer.Option(help="Put the knowledge of the QA file before its question.")] = True,
    options: ComparisonOptions,
) -> None:
    """HaluEval: how well likelihood tells right answers from hallucinated ones.

    Example: decoding eval halueval --data qa_data.json --strategy greedy --strategy dola --output results
    """
    from decoding.evals.engine.prepared import prepared, report
    from decoding.evals.tasks.halueval import HaluEval, load
    from decoding.evals.tasks.likelihood import note_cuts

    responses, left_out = load(data, options.skip_bad)
    used = responses[: options.limit]
    for kind in ("right", "hallucinated"):
        if not any(getattr(response, kind) for response in used):
            raise InputError(f"{data}: none of the {len(used)} documents has a {kind} text to tell from others")
    ready = prepared(options)
    task = HaluEval(ready.model, ready.tokenizer, responses, knowledge=knowledge, left_out=left_out)
    results = ready.run(task, ready.configurations(task.settings))
    note_cuts(results)
    report(results, task.figures, options.json, options.holm)
