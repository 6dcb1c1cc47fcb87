"""Explanations in terminals and markdown: where a strategy left greedy search's path, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from decoding.explanation.records import Candidate, Explanation, Step

__all__ = ["as_markdown", "as_table"]

MARKS = re.compile(r"[\\`*_<|\[\]]")  # of markdown
COLUMNS = ("token", "chosen", "p", "instead of", "p", "because")


def as_table(explanation: Explanation) -> Table:
    """The steps at which another token than greedy search's was chosen."""
    rows = _rows(explanation)
    table = Table(
        box=None, padding=(0, 1), pad_edge=False, show_header=bool(rows),
        title=_summary(explanation, rows), title_justify="left",
    )  # fmt: skip
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("token", "p") else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def as_markdown(explanation: Explanation) -> list[str]:
    """The same steps as lines of markdown."""
    rows = _rows(explanation)
    lines = [_summary(explanation, rows), ""]
    if not rows:
        return lines[:1]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---:|---|---:|---|---:|---|"]
    return lines + [f"| {' | '.join(MARKS.sub(_escaped, cell) for cell in row)} |" for row in rows]


def _escaped(mark: re.Match[str]) -> str:
    return f"\\{mark[0]}"


def _summary(explanation: Explanation, rows: Sequence[Sequence[str]]) -> str:
    return f"Not greedy search's token at {len(rows)} of {len(explanation.steps)}{':' if rows else '.'}"


def _rows(explanation: Explanation) -> list[tuple[str, ...]]:
    """Pieces of text are quoted, so that their spaces and line ends are seen."""
    expert = explanation.readers[0]
    return [
        (
            str(step.position), repr(step.chosen.text), f"{step.chosen.probability_of(expert):.2f}",
            repr(step.greedy.text), f"{step.greedy.probability_of(expert):.2f}", _reason(explanation, step),
        )
        for step in explanation.steps
        if step.differs_from_greedy
    ]  # fmt: skip


def _reason(explanation: Explanation, step: Step) -> str:
    """What counted most for the chosen token and against greedy search's, in a few words."""
    chosen, greedy = step.chosen, step.greedy
    if greedy.score is None or chosen.score is None:
        return "it may not be chosen"
    if chosen.score <= greedy.score:
        return "drawn"
    gains = {name: weight * _difference(name, chosen, greedy) for name, weight in step.weights.items()}
    name = max(gains, key=lambda name: gains[name], default=None)
    if name is None:
        return f"its score is lower by {chosen.score - greedy.score:.2f}"
    if name not in greedy.log_probs:
        repeated = ""
        if greedy.repeats is not None and explanation.texts is not None:
            repeated = f", as {explanation.texts[greedy.repeats]!r} at token {greedy.repeats}"
        return f"{name} {greedy.parts[name]:.2f}{repeated}, not {chosen.parts[name]:.2f}"
    return f"{name}: p {greedy.probability_of(name):.2g}, not {chosen.probability_of(name):.2g}"


def _difference(name: str, chosen: Candidate, greedy: Candidate) -> float:
    """How much larger the chosen token's log-probability or part is."""
    if name in chosen.log_probs:
        of_chosen, of_greedy = chosen.log_probs[name], greedy.log_probs[name]
        return 0.0 if of_chosen is None or of_greedy is None else of_chosen - of_greedy
    return chosen.parts.get(name, 0.0) - greedy.parts.get(name, 0.0)
