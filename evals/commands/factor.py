"""``decoding eval factor``."""

from __future__ import annotations

from typing import Annotated

import typer

from decoding.cli.options import expanded
from decoding.evals.engine.options import ComparisonOptions

__all__ = ["factor_command"]


@expanded
def factor_command(
    *,
    data: Annotated[str, typer.Option(metavar="FILE", help="FACTOR's CSV, such as news_factor.csv, or a hub name.")],
    prefix: Annotated[
        str | None,
        typer.Option(metavar="full|truncated", help="Which prefixes; by default full for news, truncated for others."),
    ] = None,
    options: ComparisonOptions,
) -> None:
    """FACTOR: how often the true completion of a text is more probable than three false variants of it.

    Example: decoding eval factor --data news_factor.csv --strategy greedy --strategy dola --output results
    """
    from decoding.evals.engine.prepared import prepared, report
    from decoding.evals.tasks.factor import Factor, load
    from decoding.evals.tasks.likelihood import note_cuts

    completions, left_out = load(data, prefix, options.skip_bad)
    ready = prepared(options)
    task = Factor(ready.model, ready.tokenizer, completions, left_out=left_out)
    results = ready.run(task, ready.configurations(task.settings, generation_config=None))
    note_cuts(results)
    report(results, task.figures, options.json, options.holm)
