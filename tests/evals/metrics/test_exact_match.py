"""Exact match of short answers."""

from __future__ import annotations

import pytest

from decoding.evals.metrics.exact_match import exact_match, mentioned, normalised_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple, a day", "apple day"),
        ("U.S.", "us"),
        ("Theatre", "theatre"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_by_squad(text: str, expected: str) -> None:
    assert normalised_answer(text) == expected


def test_a_match_is_of_the_whole_text_and_a_mention_of_whole_words() -> None:
    assert exact_match("The Nile.", ["Niger", "nile"])
    assert not exact_match("The Nile is.", ["Nile"])
    assert mentioned("It is the River Nile, I think.", ["river nile"])
    assert not mentioned("It is Romeo.", ["Rome"])
    assert not mentioned("It is Rome.", ["the", ""])  # nothing is left of these
    assert not exact_match("Rome", [])
