"""The texts of a page as HTML: growing ones as text, and those that are done in the explorer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from decoding.explanation.explorer import ExploredTexts, UnexplainedText, explorer_element
from decoding.explanation.raw_exits import note_on_raw_exits
from decoding.explanation.records import Explanation
from decoding.play.requests import STOPPED, Progress, TextRequest

__all__ = ["explained_sides", "failure_html", "texts_html"]


def texts_html(states: Sequence[Progress]) -> str:
    """Notes on each text, and below them the texts: in the explorer, once none is being written."""
    failures = {state.note if state.failed else None for state in states}
    if len(failures) == 1 and None not in failures:
        return failure_html(states[0].note)  # of the model, or of the line
    notes = "".join(
        f"<li{_class(state)}><b>{state.request.spec.name}</b> {escape(state.note)}</li>" for state in states
    )
    if all(state.is_done for state in states):
        shown = [states[side] for side in explained_sides(states)]
        is_chat = any(state.request.chat for state in shown)
        group = ExploredTexts("", list(map(_explored, shown)), list(map(_note_below, shown)), folds_prompts=is_chat)
        texts = explorer_element([group], branch=True) if shown else ""
    else:
        cards = "".join(map(_card, states))
        section = f'<section class="et-group"><div class="et-cards">{cards}</div></section>'
        texts = f"<explained-texts>{section}</explained-texts>"
    return f'<ul class="play-notes" role="status">{notes}</ul>{texts}'


def failure_html(message: str) -> str:
    """A page's answer to a request that cannot be begun."""
    return f'<ul class="play-notes" role="alert"><li class="play-failed">{escape(message)}</li></ul>'


def explained_sides(states: Sequence[Progress]) -> list[int]:
    """The number among all texts of each text that the explorer shows."""
    return [side for side, state in enumerate(states) if state.written is not None]


def _class(state: Progress) -> str:
    return ' class="play-failed"' if state.failed else ""


def _note_below(state: Progress) -> str:
    """What stands under a text: that it was stopped, and what is to be said of its explanation."""
    written = state.written
    if written is None:
        return ""
    notes = [STOPPED] if written.stopped else []
    if written.explanation is not None:
        notes.append(note_on_raw_exits(state.request.spec, written.explanation))
    return " · ".join(filter(None, notes))


def _explored(state: Progress) -> Explanation | UnexplainedText:
    assert state.written is not None
    return state.written.explanation or UnexplainedText(state.label, _given(state.request) + state.text)


def _card(state: Progress) -> str:
    name, _, parameters = state.label.partition("(")
    small = f"<small>{escape(parameters.removesuffix(')'))}</small>" if parameters else ""
    given = f'<span class="et-given">{escape(_given(state.request))}</span>'
    return (
        f'<article class="et-card"><h3>{escape(name)}{small}</h3><p class="et-text" dir="auto">{given}'
        f"{escape(state.text)}</p></article>"
    )


def _given(request: TextRequest) -> str:
    """The prompt as it stands before the text; a chat's answer stands alone."""
    return "" if request.chat else request.prompt
