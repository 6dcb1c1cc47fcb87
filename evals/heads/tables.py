"""Retrieval heads as a table, with the strategy that takes them away."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from decoding.evals.heads.results import RETRIEVAL, RetrievalHeads

__all__ = ["show"]


def show(out: Console, found: RetrievalHeads, file: Path | None = None) -> None:
    """Print the best heads, what is copied with and without them, and the strategy.

    Args:
        out: where to print.
        found: the heads.
        file: that holds them; None for none.
    """

    def line(text: str) -> None:
        out.print(text, markup=False, soft_wrap=True)

    heads = sum(map(len, found.scores))
    lengths = ", ".join(map(str, found.lengths))
    line(
        f"{found.model}: {found.contexts} contexts of {lengths} tokens; {found.copied:.0%} of {found.tokens} tokens of "
        "answers as in the needle"
    )
    if not found.text:
        line("no head has a score above 0: none attends to the needle where the model says what it says")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("layer.head", "score"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer, head in found.best:
        table.add_row(f"{layer}.{head}", f"{found.scores[layer][head]:.3f}")
    out.print(table)
    line(f"{found.retrieval} of {heads} heads have {RETRIEVAL} or more")
    if found.control is not None:
        control, masked = found.control, len(found.best)
        line(
            f"in other contexts {control.copied:.0%} of {control.tokens}; without these {masked} heads "
            f"{control.without_best:.0%}; without {masked} others, drawn, {control.without_drawn:.0%}"
        )
    line(f"\n--strategy masked-heads:heads={file or found.text}")
