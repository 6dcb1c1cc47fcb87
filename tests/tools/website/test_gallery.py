"""The gallery of explained texts."""

from __future__ import annotations

import re

import pytest
from documents import words_of

from decoding.tools.website.gallery import GALLERY, Exhibit, gallery_page, html_of


def test_the_page_shows_the_commands_that_made_the_others() -> None:
    lines = re.findall(r"^    decoding (.*)$", gallery_page(), flags=re.MULTILINE)
    assert [words_of(line) for line in lines] == [exhibit.command(f"{name}.html") for name, exhibit in GALLERY.items()]
    assert len(lines) == 2


def test_a_page_holds_the_texts_of_its_strategies() -> None:
    html = html_of(Exhibit("t", "a", "Long ago", ("greedy", "dola:layers=2"), 3))
    assert html.lower().startswith("<!doctype html>")
    assert "dola" in html
    assert not re.search(r"(src|href)=.https?://", html)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"decoding compare --prompt x --strategy gredy .*unknown strategy 'gredy'"):
        html_of(Exhibit("t", "a", "x", ("gredy",), 3))
