"""Explanations of contrastive search: tokens that it rejected, and the earlier tokens that they are similar to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from decoding.strategies.contrastive_search.explanation import Candidate, explain_contrastive_search
from decoding.strategies.contrastive_search.strategy import HiddenStateSearch
from decoding.text import Continuation, encoded, new_token_budget

__all__ = ["Explanation", "as_markdown", "as_table", "explained"]

Explanation = list[dict[str, Any]]
"""A record a new token, as in ``compare.json``: ``position``, and of the token ``chosen`` and of the most
probable one (``greedy``) each ``token``, ``text``, ``probability``, ``penalty`` and ``repeats``: the ``position`` and
``text`` of the earlier token that it is most similar to, None where there is none. Positions count the tokens of prompt
and text from 0.
"""

MARKS = re.compile(r"[\\`*_<|\[\]]")  # of markdown
COLUMNS = ("token", "chosen", "penalty", "instead of", "p", "penalty", "which repeats")


def explained(
    model: Any,
    tokenizer: Any,
    strategy: HiddenStateSearch,
    made: Continuation,
    max_new_tokens: int | None = None,
    chat: bool = False,
) -> Explanation:
    """The steps of a text that :func:`decoding.text.continuations` made with this strategy."""
    inputs = encoded(model, tokenizer, made.prompt, chat)
    steps = explain_contrastive_search(
        model, torch.tensor([made.token_ids]), strategy, **inputs, do_sample=False, num_beams=1,
        max_new_tokens=new_token_budget(model, inputs["input_ids"].shape[1], max_new_tokens),
    )  # fmt: skip

    def record(candidate: Candidate, place: int) -> dict[str, Any]:
        repeats = None
        if (at := candidate.repeats) is not None:
            repeats = {"position": at, "text": _piece(tokenizer, made.token_ids[:at], made.token_ids[at])}
        return {
            "token": candidate.token,
            "text": _piece(tokenizer, made.token_ids[:place], candidate.token),
            "probability": round(candidate.probability, 6),
            "penalty": round(candidate.penalty, 6),
            "repeats": repeats,
        }

    return [
        {
            "position": step.position,
            "chosen": record(step.chosen, step.position),
            "greedy": record(step.greedy, step.position),
        }
        for step in steps[0]
    ]


def as_table(explanation: Explanation) -> Table:
    """The steps at which another token than the most probable one was chosen."""
    rows = _rows(explanation)
    table = Table(
        box=None, padding=(0, 1), pad_edge=False, show_header=bool(rows),
        title=_summary(explanation, rows), title_justify="left",
    )  # fmt: skip
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("token", "penalty", "p") else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def as_markdown(explanation: Explanation) -> list[str]:
    """The same steps as lines of markdown."""
    rows = _rows(explanation)
    lines = [_summary(explanation, rows), ""]
    if not rows:
        return lines[:1]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---:|---|---:|---|---:|---:|---|"]
    return lines + [f"| {' | '.join(MARKS.sub(_escaped, cell) for cell in row)} |" for row in rows]


def _escaped(mark: re.Match[str]) -> str:
    return f"\\{mark[0]}"


def _summary(explanation: Explanation, rows: Sequence[Sequence[str]]) -> str:
    return f"Not the most probable token at {len(rows)} of {len(explanation)}{':' if rows else '.'}"


def _rows(explanation: Explanation) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []  # pieces of text are quoted, so that their spaces and line ends are seen
    for step in explanation:
        chosen, greedy = step["chosen"], step["greedy"]
        if chosen["token"] == greedy["token"]:
            continue
        repeats = greedy["repeats"]
        rows.append(
            (
                str(step["position"]), repr(chosen["text"]), f"{chosen['penalty']:.2f}", repr(greedy["text"]),
                f"{greedy['probability']:.2f}", f"{greedy['penalty']:.2f}",
                "" if repeats is None else f"{repeats['text']!r} at token {repeats['position']}",
            )
        )  # fmt: skip
    return rows


def _piece(tokenizer: Any, before: Sequence[int], token: int) -> str:
    """The text that a token adds after others; the token's name where it adds none (half a character)."""
    last = [*before[-1:]]  # many tokenizers drop the space before a first word
    start, text = (str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in (last, [*last, token]))
    added = text[len(start) :] if text.startswith(start) else ""
    return added if added and "\ufffd" not in added else str(tokenizer.convert_ids_to_tokens(token))
