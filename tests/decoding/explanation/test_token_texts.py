"""The texts of tokens: together they are the text, and a character of several tokens is whole."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import word_tokenizer

from decoding.evals import miniature
from decoding.explanation.token_texts import TokenTexts

TEXTS = [
    "The old clockmaker smiled.", "老钟表匠慢慢地笑了。", "يضيء القمر فوق النهر القديم.",
    "one 👩‍👩‍👧 two", "naïve café\n\n  x",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return miniature.load("expert")[1]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text_and_no_piece_has_half_a_character(text: str, tokenizer: Any) -> None:
    tokens = tokenizer(text)["input_ids"]
    pieces = TokenTexts(tokenizer, tokens).texts
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    assert not any("\ufffd" in piece for piece in pieces)
    assert text.strip() in "".join(pieces)


def test_a_token_within_a_character_adds_nothing_and_the_last_one_all_of_it(tokenizer: Any) -> None:
    tokens = tokenizer("老")["input_ids"]
    pieces = TokenTexts(tokenizer, tokens).texts
    assert len(tokens) > 1, "the embedded tokenizer writes it in bytes"
    assert [piece for piece in pieces if piece.strip() not in ("", "<s>")] == [pieces[-1]]
    assert "老" in pieces[-1]


def test_a_text_that_ends_within_a_character_shows_what_there_is(tokenizer: Any) -> None:
    tokens = tokenizer("老")["input_ids"][:-1]
    assert set(TokenTexts(tokenizer, tokens).texts[-1]) == {"\ufffd"}


def test_other_tokens_in_a_place_are_read_behind_the_open_character(tokenizer: Any) -> None:
    first, second = (tokenizer(text)["input_ids"] for text in ("老", "翀"))
    assert first[:-1] != second[:-1]
    texts = TokenTexts(tokenizer, first)
    last = len(first) - 1
    assert texts.at(last, first[-1]) == "老"
    named = texts.at(last - 1, second[-2])
    assert named.startswith("<0x")
    assert "\ufffd" not in named


def test_tokens_of_words_keep_their_space_and_others_their_name() -> None:
    tokenizer = word_tokenizer()
    texts = TokenTexts(tokenizer, [5, 6, 1])
    assert [piece.strip() for piece in texts.texts[:2]] == tokenizer.convert_ids_to_tokens([5, 6])
    assert texts.at(1, 9).strip() == tokenizer.convert_ids_to_tokens(9)
