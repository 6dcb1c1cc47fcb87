"""Explanations from elsewhere: what is not one is told in one line, by the place of the first wrong value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from decoding.errors import OptionError
from decoding.explanation.explorer import ExploredTexts, UnexplainedText, explorer_element, explorer_page
from decoding.explanation.records import Candidate, Explanation, Step


def _candidate(token: int, **more: Any) -> Candidate:
    return Candidate(token, f" {token}", {"expert": -1.0, "amateur": -2.0}, 0.5, 0.25, {"penalty": 0.5}, **more)


def _explanation() -> Explanation:
    """A prompt of one token and two new ones."""
    first = Step(1, _candidate(7, repeats=0), (_candidate(8),), 8, 2, {"expert": 1.5}, {"layer": 2}, {"amateur": 0.5})
    second = Step(2, _candidate(9), (), 9, 1, draft="rejected", draft_token=3)
    texts = ("Tom", " 7", " 9")
    return Explanation("dola", ("expert", "amateur"), (5, 7, 9), texts, (False,) * 3, (first, second))


EXPLANATION = _explanation()


def test_what_was_written_is_read() -> None:
    assert Explanation.from_json(EXPLANATION.to_json()) == EXPLANATION
    bare = dataclasses.replace(EXPLANATION, texts=None)
    assert Explanation.from_dict(bare.as_dict()) == bare


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda values: values.pop(name)


def _with(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: values.update(changes)


def _in_step(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda values: change(values["steps"][0])


def _in_chosen(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return _in_step(lambda step: change(step["chosen"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("version"), "explanation={'strategy': 'dola', .*: must be what to_json"),
        (_with(version=2), "explanation: version 2 is none that is read here; must be 1"),
        (_with(version=True), "explanation: version True"),
        (
            _without("texts"),
            "explanation: has no 'texts'; must have strategy, readers, tokens, texts, is_padding, steps",
        ),
        (_with(more=1), "explanation: has 'more', which is none of strategy, "),
        (_with(strategy=1), "explanation.strategy=1: must be text"),
        (_with(readers="expert"), "explanation.readers='expert': must be a list"),
        (_with(readers=[]), r"explanation.readers=\(\): must be one name or several"),
        (_with(tokens=[5, 7, 9.5]), r"explanation.tokens\[2\]=9.5: must be a whole number"),
        (_with(tokens=[5]), "explanation.texts: 3 values; must be one for each of 1 tokens"),
        (_with(is_padding=[]), "explanation.is_padding: 0 values; must be one for each of 3 tokens"),
        (_with(is_padding=[0, 0, 0]), r"explanation.is_padding\[0\]=0: must be true or false"),
        (_with(steps={}), "explanation.steps={}: must be a list"),
        (_with(steps=[3]), r"explanation.steps\[0\]=3: must be an object with names"),
        (
            _in_step(_with(position=2)),
            r"explanation.steps\[0\].position=2: must be 1, since steps are of the last tokens",
        ),
        (_in_step(_with(greedy_token=1)), r"explanation.steps\[0\].greedy_token=1: must be the token of a candidate"),
        (_in_step(_with(draft="lost")), r"explanation.steps\[0\].draft='lost': must be accepted or rejected, or none"),
        (_in_step(_with(weights=[1])), r"explanation.steps\[0\].weights=\[1\]: must be an object with names"),
        (_in_chosen(_without("score")), r"explanation.steps\[0\].chosen: has no 'score'; must have token, "),
        (_in_chosen(_with(probability=float("nan"))), r"chosen.probability=nan: must be a finite number"),
        (_in_chosen(_with(log_probs={"expert": -1.0})), "token 7 has no log-probability of the reader 'amateur'"),
        (_in_chosen(_with(repeats=1)), "token 7 repeats 1; must be 0 to 0"),
    ],
)
def test_what_is_no_explanation_is_one_line(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    values = json.loads(EXPLANATION.to_json())
    change(values)
    with pytest.raises(OptionError, match=f"^{message}|^explanation.*{message}") as refused:
        Explanation.from_json(json.dumps(values))
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("text", ["{}", "[]", "null", "nonsense", "[" * 100_000, b"\xff", None, 3])
def test_what_is_no_json_of_one_is_one_line(text: Any) -> None:
    with pytest.raises(OptionError, match=r"^explanation.*: must be .*to_json") as refused:
        Explanation.from_json(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnexplainedText("beam", None), "UnexplainedText.text=None: must be text"),
        (lambda: ExploredTexts(None, []), "ExploredTexts.title=None: must be text"),
        (
            lambda: ExploredTexts("", EXPLANATION),
            "ExploredTexts.texts is a Explanation: must be a list of explanations",
        ),
        (lambda: ExploredTexts("", "text"), "ExploredTexts.texts is a str: must be a list"),
        (
            lambda: ExploredTexts("", ["text"]),
            r"ExploredTexts.texts\[0\] is a str: must be one of explanations and texts",
        ),
        (lambda: ExploredTexts("", [EXPLANATION], ["a", "b"]), "ExploredTexts.notes: are 2; must be one for each of 1"),
        (
            lambda: ExploredTexts("", [dataclasses.replace(EXPLANATION, texts=("a",))]),
            "explanation.texts: 1 values; must be one for each of 3 tokens",
        ),
        (
            lambda: ExploredTexts("", [dataclasses.replace(EXPLANATION, steps=EXPLANATION.steps[:1])]),
            r"explanation.steps\[0\].position=1: must be 2",
        ),
        (lambda: explorer_page(3, []), "title=3: must be text"),
        (lambda: explorer_page("", [], None), "lead=None: must be text"),
        (
            lambda: explorer_page("", ExploredTexts("", [])),
            "groups is a ExploredTexts: must be a list of ExploredTexts",
        ),
        (lambda: explorer_element([EXPLANATION]), r"groups\[0\] is a Explanation: must be one of ExploredTexts"),
    ],
)
def test_the_explorer_refuses_what_it_cannot_show(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        make()
