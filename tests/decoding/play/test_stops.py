"""Texts of several visitors: what ends one, what is kept of it, and who is next."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from playground_texts import NEW, Held, finished, needs_the_expert, request, written

from decoding.explanation.explain import explain
from decoding.play import writing
from decoding.play.playground import Playground
from decoding.play.rendering import texts_html
from decoding.play.requests import Limits, Progress
from decoding.play.turns import Turns

pytestmark = needs_the_expert


def test_a_stop_keeps_what_is_written(held: Held) -> None:
    playground = Playground(loader=held.load)
    job = playground.start("visitor", [request(max_new_tokens=200), request("dola", max_new_tokens=200)])
    assert held.reached.wait(60)
    playground.stop("visitor")
    held.released.set()
    first, second = finished(job)
    assert first.written is not None
    assert 5 <= first.written.new_tokens <= 8
    assert first.written.explanation is not None  # it can still be looked into
    assert first.note.endswith("stopped")
    assert (second.note, second.written) == ("stopped", None)


def test_a_page_that_is_closed_ends_its_text_and_the_next_goes_on(held: Held) -> None:
    playground = Playground(loader=held.load)
    states = playground.start("gone", [request(max_new_tokens=200)]).states()
    next(states)
    assert held.reached.wait(60)
    waiting = playground.start("other", [request(max_new_tokens=3)])
    for (state,) in waiting.states():
        if state.note == "waiting: the model is busy, 1 before this":
            break
    else:
        pytest.fail("nobody was told to wait")
    again = playground.start("another", [request(max_new_tokens=3)])
    states.close()  # as a generator is whose reader is gone
    held.released.set()
    (state,) = finished(again)
    assert state.written is not None
    assert state.written.new_tokens == 3
    assert held.passes < 40  # not the 200 of the first text


def test_a_page_that_is_closed_ends_the_explanation_of_its_text(
    expert: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contrastive search is read again one token a pass; the page is closed as that begins."""
    passes: list[int] = []

    def closed(*given: Any, **options: Any) -> Any:
        passes.clear()
        job.leave()
        return explain(*given, **options)

    monkeypatch.setattr(writing, "explain", closed)
    hook = expert[0].base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        job = Playground(loader=lambda name: expert).start("gone", [request("contrastive-search")])
        (state,) = finished(job)
    finally:
        hook.remove()
    assert state.written is not None
    assert state.written.new_tokens == NEW
    assert state.written.explanation is None
    assert 1 <= len(passes) <= 2  # of the 8 of the explanation


def test_a_text_that_was_stopped_says_so_below_it(playground: Playground) -> None:
    (text,) = written(playground, request(max_new_tokens=3))
    stopped = replace(text, stopped=True)
    states = [Progress(found.request, found.text, "note", written=found) for found in (text, stopped)]
    html = texts_html(states)
    assert html.count('"note":"stopped"') == 1


def test_a_page_does_not_wait_for_its_first_model(expert: tuple[Any, Any]) -> None:
    """A text that is asked for while the model is loaded waits for it, and loads it no second time."""
    loads, loading, loaded = [], threading.Event(), threading.Event()

    def load(name: str) -> tuple[Any, Any]:
        loads.append(name)
        loading.set()
        assert loaded.wait(60)
        return expert

    playground = Playground(loader=load)
    first = threading.Thread(target=playground.load_first)
    first.start()
    assert loading.wait(60)
    states = playground.start("test", [request(max_new_tokens=1)]).states()
    assert any(state.note == "loading expert" for (state,) in states)
    loaded.set()
    assert list(states)[-1][0].written is not None
    first.join()
    assert loads == ["expert"]


def test_a_page_that_does_not_even_say_that_it_is_gone_holds_nobody_up(playground: Playground) -> None:
    abandoned = playground.start("silent", [request(max_new_tokens=30)]).states()
    next(abandoned)
    assert len(written(playground, request())) == 1


def test_a_new_text_of_a_visitor_ends_the_one_before(held: Held) -> None:
    playground = Playground(loader=held.load)
    first = playground.start("visitor", [request(max_new_tokens=200)])
    assert held.reached.wait(60)
    second = playground.start("visitor", [request(max_new_tokens=2)])
    held.released.set()
    (state,) = finished(second)
    assert state.written is not None
    (before,) = finished(first)
    assert before.written is not None
    assert before.written.new_tokens < 10


def test_a_line_that_is_full_says_so(held: Held) -> None:
    playground = Playground(limits=Limits(waiting=1), loader=held.load)
    first = playground.start("a", [request(max_new_tokens=20)])
    assert held.reached.wait(60)
    second = playground.start("b", [request(max_new_tokens=2)])
    states = second.states()
    assert any("1 before this" in state.note for (state,) in states)
    (third,) = finished(playground.start("c", [request()]))
    assert third.note == "the model is busy, and 1 text waits for it: try again in a moment"
    held.released.set()
    assert list(states)[-1][0].written is not None
    assert finished(first)[0].written is not None


def test_turns_come_in_order() -> None:
    turns = Turns(5)
    with turns.place() as first, turns.place() as second, turns.place() as third:
        assert [first(0), second(0), third(0)] == [0, 1, 2]
    with turns.place() as alone:
        assert alone(0) == 0
