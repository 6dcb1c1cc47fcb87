"""Units of metrics: words, characters, pieces of a tokenizer."""

import json
import shutil
from pathlib import Path

import pytest

from decoding.errors import OptionError
from decoding.evals import miniature
from decoding.evals.metrics.repetition import repetition
from decoding.evals.metrics.units import splitter, units_identity

EXPERT = miniature.folder("expert")
needs_expert = pytest.mark.skipif(not (EXPERT / "tokenizer.json").is_file(), reason="the embedded expert is not here")


def test_words_and_characters():
    assert list(splitter("whitespace")(" a  bc\n")) == ["a", "bc"]
    assert list(splitter("characters")("今天 天气")) == ["今", "天", "天", "气"]


@needs_expert
def test_tokens_of_a_tokenizer_spell_the_text_without_special_ones():
    words = splitter(str(EXPERT))("the town lies")
    assert "".join(words).replace("▁", " ").strip() == "the town lies"


@needs_expert
def test_scripts_that_a_tokenizer_does_not_know_fall_back_to_bytes():
    assert len(splitter(str(EXPERT))("ไทย")) >= 9  # three letters of three UTF-8 bytes


def test_pieces_of_a_sentencepiece_model(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("the town lies by the sea\nthe sea was calm and the town slept\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spm"), vocab_size=23, minloglevel=3
    )
    pieces = splitter(str(tmp_path / "spm.model"))("the sea")
    assert "".join(pieces).replace("▁", " ").strip() == "the sea"


def test_whitespace_says_nothing_of_a_language_without_spaces():
    """A text that repeats one sentence shows why --units exists."""
    text = "今天天气很好" * 10
    assert repetition([text], 2) == 0
    assert repetition([text], 2, "characters") > 80


@pytest.mark.parametrize("units", ["syllables", "./absent", "", __file__])
def test_what_are_no_units(units):
    with pytest.raises(OptionError, match=r"must be whitespace, characters, a sentencepiece model"):
        splitter(units)


def test_a_folder_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(OptionError, match="units="):
        splitter(str(tmp_path))


@needs_expert
def test_units_are_told_by_what_their_file_or_tokenizer_holds(tmp_path):
    folder = shutil.copytree(EXPERT, tmp_path / "tokenizer")
    before = units_identity(str(folder))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    after = units_identity(str(folder))
    assert before != after
    assert before.startswith(f"{folder} (")
    assert units_identity("expert").partition(" ")[2] == before.removeprefix(f"{folder} ")
    assert units_identity("characters") == "characters"
    with pytest.raises(OptionError, match=r"units='\./absent'"):
        units_identity("./absent")


def test_a_sentencepiece_model_is_told_by_its_bytes(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    seen = []
    for text in ("the town lies by the river ", "rain fell on a market where nobody sold anything "):
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter([text * 9]), model_prefix=str(tmp_path / "units"), vocab_size=30,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        seen.append(units_identity(str(tmp_path / "units.model")))
    assert seen[0] != seen[1]
