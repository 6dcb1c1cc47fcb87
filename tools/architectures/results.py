"""Results of each model type, and the table of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Cell", "Row", "section", "table", "totals"]

WAYS = ("shared prefix", "fork", "recompute")


@dataclass(frozen=True)
class Cell:
    """A result: a word, and the reason where it is not the expected one."""

    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One model type.

    Attributes:
        model_type: as in transformers' mapping.
        cells: by column; empty where the type was not tried.
        not_tried: why it was not: it generates no text, cannot be built, or transformers' own ``generate`` fails on it.
    """

    model_type: str
    cells: Mapping[str, Cell] = field(default_factory=dict)
    not_tried: str = ""


def totals(rows: Sequence[Row]) -> dict[str, int]:
    """The numbers of all types, of those tried, and of each verdict on contrastive search."""
    tried = [row for row in rows if not row.not_tried]
    verdicts = Counter(row.cells["contrastive search"].verdict for row in tried)
    return {"types": len(rows), "tried": len(tried), **verdicts}


def table(rows: Sequence[Row], columns: Sequence[str], versions: Mapping[str, str]) -> str:
    """The page ``docs/architectures.md``."""
    counts = totals(rows)
    tried = counts["tried"]
    exact = sum(counts.get(way, 0) for way in WAYS)
    refused = counts.get("refused", 0)
    exits = sum(row.cells["early exits"].verdict == "yes" for row in rows if "early exits" in row.cells)
    lines = [
        "# Model architectures", "",
        "Made by `python -m decoding.tools.architectures --output docs/architectures.md`, on "
        + ", ".join(f"{name} {versions[name]}" for name in ("transformers", "torch")) + ".", "",
        "Every model type that transformers maps to a causal language model is built tiny, with random weights, in "
        "float32. Sliding windows are shorter than the prompts. Contrastive search (α 0.6, k 4, 8 tokens) decodes two "
        "prompts with left padding. Tokens, candidates and their scores (to 1e-5) must equal those of full "
        "recomputation, which reads each candidate's text from its first token without a cache. New prompts are drawn, "
        "at most six times, until no two scores of a step are closer than 2e-5.", "",
        f"Of {counts['types']} types {tried} write text and could be built and run. Of these {exact} "
        f"({exact / max(tried, 1):.1%}) are exact: {counts.get('shared prefix', 0)} by shared prefix, "
        f"{counts.get('fork', 0)} by forked rows, {counts.get('recompute', 0)} by recompute (each branch is read from "
        f"its first token, without a cache). {refused} ({refused / max(tried, 1):.1%}) are refused: the library raises "
        f"an error that names them. {tried - exact - refused} are neither.", "",
        "*Left padding* is `no` if the model itself computes another result for a padded row than for the row alone. "
        "The search is then compared with the recomputation of the padded row. *Early exits* is DoLa over every lower "
        "layer, 5 tokens of two prompts. Its tokens and scores (to 2e-3) are compared with forward passes in which the "
        f"higher layers are switched off; they are equal for {exits} of {tried} types ({exits / max(tried, 1):.1%}).",
        "",
        "| type | " + " | ".join(columns) + " | why |", "|---" * (len(columns) + 2) + "|",
    ]  # fmt: skip
    return "\n".join([*lines, *_lines(rows, columns)]) + "\n"


def section(title: str, text: str, rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A further table of the page, under a heading and a paragraph."""
    head = ["", f"## {title}", "", text, "", "| type | " + " | ".join(columns) + " | why |"]
    return "\n".join([*head, "|---" * (len(columns) + 2) + "|", *_lines(rows, columns)]) + "\n"


def _lines(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    lines = []
    for row in rows:
        if row.not_tried:
            lines.append(f"| {row.model_type} | " + "- | " * len(columns) + f"not tried: {_safe(row.not_tried)} |")
            continue
        cells = [row.cells.get(column, Cell("-")) for column in columns]
        why = "; ".join(dict.fromkeys(_safe(cell.reason) for cell in cells if cell.reason))
        lines.append(f"| {row.model_type} | {' | '.join(cell.verdict for cell in cells)} | {why} |")
    return lines


def _safe(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")
