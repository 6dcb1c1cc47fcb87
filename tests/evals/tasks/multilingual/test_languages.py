"""The 16 languages with the paper's k."""

from pathlib import Path

import pytest

from decoding.errors import OptionError
from decoding.evals.metrics.units import splitter
from decoding.evals.tasks.multilingual.languages import LANGUAGES, language
from decoding.strategies.lol_guidance import GUIDANCE

TRANSLATIONS = Path(__file__).resolve().parents[5] / "shared" / "data" / "truthfulqa_multilingual"


def test_the_paper_has_sixteen():
    assert list(LANGUAGES) == [
        "en",
        "zh",
        "ja",
        "ko",
        "fr",
        "de",
        "es",
        "it",
        "pt",
        "nl",
        "ru",
        "ar",
        "hi",
        "bn",
        "th",
        "id",
    ]


def test_k_is_the_papers():
    by_k = {k: {code for code, language in LANGUAGES.items() if language.top_k == k} for k in (3, 4, 5)}
    assert by_k[4] == {"en", "ru", "de", "nl"}
    assert by_k[5] == {"ja"}
    assert len(by_k[3]) == 11


def test_scripts_without_spaces_count_characters():
    assert {code for code, language in LANGUAGES.items() if language.units == "characters"} == {"zh", "ja", "th"}
    for entry in LANGUAGES.values():
        assert splitter(entry.units)


def test_sacrebleu_has_the_tokenizers():
    metrics = pytest.importorskip("sacrebleu.metrics")
    assert {language.bleu for language in LANGUAGES.values()} <= set(metrics.BLEU.TOKENIZERS)


def test_another_language_is_named():
    with pytest.raises(OptionError, match=r"language 'vi'.*expected one of en, zh"):
        language("vi")


def test_each_language_has_guidance_of_its_own():
    of_the_data = {path.stem.rpartition("_")[2] for path in TRANSLATIONS.glob("*.json")} | {"ca", "eu", "gl"}
    assert set(GUIDANCE) == set(LANGUAGES) | of_the_data
    assert len(set(GUIDANCE.values())) == len(GUIDANCE)
    assert all(text.endswith("\n\n") and text.count("\n") == 2 for text in GUIDANCE.values())
