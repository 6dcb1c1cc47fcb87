"""The explorer of explained texts: HTML that shows why each token was chosen, with its own script and style.

A page of this library is :func:`explorer_page`, one file that fetches nothing. Pages of other programs put
:func:`explorer_style` and :func:`explorer_script` into their head once, and :func:`explorer_element` wherever a text is
shown, as often as they like: the browser runs a custom element whenever one is put into a page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from decoding.errors import OptionError
from decoding.explanation.records import Candidate, Explanation, Step, checked_explanation
from decoding.explanation.typed import typed

__all__ = [
    "ExploredTexts",
    "UnexplainedText",
    "explorer_element",
    "explorer_page",
    "explorer_script",
    "explorer_style",
]

DIGITS = 5  # after the point, of every figure in the data
PAGE_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; background: #fafaf8; color: #1d1f21; line-height: 1.5; overflow-wrap: anywhere;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 90rem; margin: 0 auto; padding: 1rem clamp(.6rem, 3vw, 2rem) 0; }
h1 { font-size: 1.5rem; margin: 0; } main > p { max-width: 50rem; margin: .3rem 0 .8rem; }
@media (prefers-color-scheme: dark) { body { background: #16191c; color: #e8e6e3; } }
"""


@dataclass(frozen=True)
class UnexplainedText:
    """A text that is shown beside explained ones.

    Attributes:
        strategy: its name and parameters.
        text: that it wrote.

    Raises:
        OptionError: one of them is no text.
    """

    strategy: str
    text: str

    def __post_init__(self) -> None:
        for name in ("strategy", "text"):
            typed(str, getattr(self, name), f"UnexplainedText.{name}")


@dataclass(frozen=True)
class ExploredTexts:
    """Texts that stand side by side.

    Attributes:
        title: stands above them, such as their prompt; "" for none.
        texts: what strategies wrote.
        notes: a line below each text; () for none.
        folds_prompts: whether the given tokens of each text, such as a chat template's, are folded away.

    Raises:
        OptionError: one of them is of another type, or an explanation's own values do not fit together.
    """

    title: str
    texts: Sequence[Explanation | UnexplainedText]
    notes: Sequence[str] = ()
    folds_prompts: bool = False

    def __post_init__(self) -> None:
        typed(str, self.title, "ExploredTexts.title")
        texts = _listed(self.texts, (Explanation, UnexplainedText), "ExploredTexts.texts", "explanations and texts")
        object.__setattr__(self, "texts", tuple(map(_checked, texts)))
        object.__setattr__(self, "notes", typed(tuple[str, ...], self.notes, "ExploredTexts.notes"))
        typed(bool, self.folds_prompts, "ExploredTexts.folds_prompts")
        if self.notes and len(self.notes) != len(texts):
            raise OptionError(f"ExploredTexts.notes: are {len(self.notes)}; must be one for each of {len(texts)} texts")


def explorer_page(title: str, groups: Sequence[ExploredTexts], lead: str = "") -> str:
    """A whole HTML file, which fetches nothing and in which no other script runs.

    Args:
        title: of the page.
        groups: of texts, one below the other.
        lead: a paragraph below the title; "" for none.

    Raises:
        OptionError: one of them is of another type.
    """
    typed(str, title, "title")
    typed(str, lead, "lead")
    script = explorer_script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{PAGE_STYLE}{explorer_style()}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{f'<p>{escape(lead)}</p>' if lead else ''}\n"
        "<noscript><p>The texts are shown by the script of this page, and scripts are switched off.</p></noscript>\n"
        f"{explorer_element(groups, address=True)}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def explorer_element(groups: Sequence[ExploredTexts], *, address: bool = False, branch: bool = False) -> str:
    """The explorer as an element for a page that has its script and its style.

    Args:
        groups: of texts, one below the other.
        address: keep what is selected in the page's address.
        branch: make candidates buttons, which tell the page by the event ``explorer-branch`` that they were clicked:
            its detail has ``group`` and ``text`` (their numbers from 0), ``position`` and ``token``.

    Raises:
        OptionError: one of them is of another type.
    """
    groups = _listed(groups, (ExploredTexts,), "groups", "ExploredTexts")
    data = {"groups": [_group(group) for group in groups]}
    attributes = "".join(f" {name}" for name, given in (("address", address), ("branch", branch)) if given)
    return f'<explained-texts{attributes}><script type="application/json">{_embedded(data)}</script></explained-texts>'


def explorer_script() -> str:
    """The JavaScript that defines the element, for a ``<script>``."""
    return _file("explorer.js")


def explorer_style() -> str:
    """The CSS of the element, for a ``<style>``."""
    return _file("explorer.css")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that stands within a script: whatever a text holds, no tag begins or ends there."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _listed(values: Any, kinds: tuple[type, ...], where: str, expected: str) -> tuple[Any, ...]:
    """The values of a list.

    Raises:
        OptionError: it is no list, or one of them is of another kind.
    """
    if isinstance(values, (str, bytes, *kinds)) or not isinstance(values, Iterable):
        raise OptionError(f"{where} is a {type(values).__name__}: must be a list of {expected}")
    listed = tuple(values)
    for index, value in enumerate(listed):
        if not isinstance(value, kinds):
            raise OptionError(f"{where}[{index}] is a {type(value).__name__}: must be one of {expected}")
    return listed


def _checked(text: Explanation | UnexplainedText) -> Explanation | UnexplainedText:
    return checked_explanation(text) if isinstance(text, Explanation) else text


def _group(group: ExploredTexts) -> dict[str, Any]:
    notes = group.notes or [""] * len(group.texts)
    texts = [_data(text) | ({"note": note} if note else {}) for text, note in zip(group.texts, notes, strict=True)]
    return {"title": group.title, "texts": texts} | ({"folds": True} if group.folds_prompts else {})


def _data(text: Explanation | UnexplainedText) -> dict[str, Any]:
    """A text as ``explorer.js`` reads it; candidates are rows, since there are many."""
    if isinstance(text, UnexplainedText):
        return {"strategy": text.strategy, "plain_text": text.text}
    tokens = text.texts
    return {
        "strategy": text.strategy,
        "readers": text.readers,
        "tokens": [f"#{token} " for token in text.tokens] if tokens is None else tokens,
        "padding": text.is_padding,
        "steps": [_step(step, text.readers) for step in text.steps],
    }


def _step(step: Step, readers: Sequence[str]) -> dict[str, Any]:
    return {
        "candidates": [_row(candidate, readers) for candidate in (step.chosen, *step.rejected)],
        "greedy": step.greedy_token,
        "choices": step.choices,
        "weights": _rounded(step.weights),
        "settings": _rounded(step.settings),
        "divergences": [round(step.divergences[reader], DIGITS) for reader in readers if reader in step.divergences],
        "draft": step.draft,
    }


def _row(candidate: Candidate, readers: Sequence[str]) -> list[Any]:
    return [
        candidate.token,
        candidate.text,
        _round(candidate.score),
        _round(candidate.probability),
        [_round(candidate.log_probs[reader]) for reader in readers],
        _rounded(candidate.parts),
        candidate.repeats,
    ]


def _rounded(values: Any) -> dict[str, Any]:
    return {name: _round(value) for name, value in values.items()}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
