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
SMALLEST = 1e-9  # of a probability that is shown as a number


def as_table(explanation: Explanation, note: str = "") -> Table:
    """The steps at which another token than greedy search's was chosen, and below them a note."""
    rows = _rows(explanation)
    table = Table(
        box=None, padding=(0, 1), pad_edge=False, show_header=bool(rows),
        title=_summary(explanation, rows), title_justify="left", caption=note or None, caption_justify="left",
    )  # fmt: skip
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("token", "p") else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def as_markdown(explanation: Explanation, note: str = "") -> list[str]:
    """The same steps and the note as lines of markdown."""
    rows = _rows(explanation)
    lines = [_summary(explanation, rows)]
    if rows:
        lines += ["", f"| {' | '.join(COLUMNS)} |", "|---:|---|---:|---|---:|---|"]
        lines += [f"| {' | '.join(MARKS.sub(_escaped, cell) for cell in row)} |" for row in rows]
    return [*lines, "", MARKS.sub(_escaped, note)] if note else lines


def _escaped(mark: re.Match[str]) -> str:
    return f"\\{mark[0]}"


def _summary(explanation: Explanation, rows: Sequence[Sequence[str]]) -> str:
    return f"Not greedy search's token at {len(rows)} of {len(explanation.steps)}{':' if rows else '.'}"


def _rows(explanation: Explanation) -> list[tuple[str, ...]]:
    """Pieces of text are quoted, so that their spaces and line ends are seen."""
    expert = explanation.readers[0]
    return [
        (
            str(step.position), _piece(step.chosen), _hundredths(step.chosen.probability_of(expert)),
            _piece(step.greedy), _hundredths(step.greedy.probability_of(expert)), _reason(explanation, step),
        )
        for step in explanation.steps
        if step.differs_from_greedy
    ]  # fmt: skip


def _reason(explanation: Explanation, step: Step) -> str:
    """What counted most for the chosen token and against greedy search's, in a few words; each number with its token,
    the chosen one first, as the columns are.
    """
    chosen, greedy = step.chosen, step.greedy
    for token in (greedy, chosen):
        if token.score is None:
            return f"{_piece(token)} may not be chosen"
    assert chosen.score is not None
    assert greedy.score is not None
    if chosen.score <= greedy.score:
        return "drawn"
    gains = {name: weight * _difference(name, chosen, greedy) for name, weight in step.weights.items()}
    name = max(gains, key=lambda name: gains[name], default=None)
    if name is None:
        return _of_both("score", chosen, f"{chosen.score:.2f}", greedy, f"{greedy.score:.2f}")
    if name not in greedy.log_probs:
        like = ""
        if greedy.repeats is not None and explanation.texts is not None:
            like = f", most like {explanation.texts[greedy.repeats]!r} at token {greedy.repeats}"
        return _of_both(name, chosen, f"{chosen.parts[name]:.2f}", greedy, f"{greedy.parts[name]:.2f}") + like
    of_chosen, of_greedy = chosen.probability_of(name), greedy.probability_of(name)
    if max(of_chosen, of_greedy) < SMALLEST:
        less, more = (chosen, greedy) if of_chosen < of_greedy else (greedy, chosen)
        return f"{name}: p({_piece(less)}) below p({_piece(more)}), both {_probability(0.0)}"
    return f"{name}: {_of_both('p', chosen, _probability(of_chosen), greedy, _probability(of_greedy))}"


def _of_both(name: str, chosen: Candidate, of_chosen: str, greedy: Candidate, of_greedy: str) -> str:
    """A quantity of two tokens, such as ``p(' He') 0.05, p(' Ruby') 0.24``."""
    return f"{name}({_piece(chosen)}) {of_chosen}, {name}({_piece(greedy)}) {of_greedy}"


def _piece(candidate: Candidate) -> str:
    return f"#{candidate.token}" if candidate.text is None else repr(candidate.text)


def _hundredths(probability: float) -> str:
    return f"{probability:.2f}" if probability >= 0.005 else "< 0.01"


def _probability(probability: float) -> str:
    """Two digits; what float32 still tells of the unlikely explains nothing."""
    return f"{probability:.2g}" if probability >= SMALLEST else f"< {SMALLEST:.0e}".replace("e-0", "e-")


def _difference(name: str, chosen: Candidate, greedy: Candidate) -> float:
    """How much larger the chosen token's log-probability or part is."""
    if name in chosen.log_probs:
        of_chosen, of_greedy = chosen.log_probs[name], greedy.log_probs[name]
        return 0.0 if of_chosen is None or of_greedy is None else of_chosen - of_greedy
    return chosen.parts.get(name, 0.0) - greedy.parts.get(name, 0.0)
