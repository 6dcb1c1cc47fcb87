"""rep-n and diversity against figures counted by hand and against published ones."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.evals.metrics import diversity, repetition
from decoding.evals.metrics.repetition import distinct

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "open_ended"
texts = st.lists(st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join), max_size=5)


def test_every_n_gram_counts_in_the_corrected_mode():
    # "a b a b a": bigrams ab ba ab ba, of which 2 are unique; trigrams aba bab aba, 2 unique; 4-grams abab baba
    assert repetition(["a b a b a"], 2, paper_exact=False) == 50
    assert repetition(["a b a b a"], 3, paper_exact=False) == pytest.approx(100 / 3)
    assert repetition(["a b a b a"], 4, paper_exact=False) == 0
    assert diversity(["a b a b a"], paper_exact=False) == pytest.approx(100 * 0.5 * 2 / 3)


def test_the_paper_leaves_out_each_last_n_gram_and_rounds():
    # bigrams ab ba ab, 2 unique of 3; trigrams aba bab; one 4-gram
    assert repetition(["a b a b a"], 2) == 33.33
    assert diversity(["a b a b a"]) == pytest.approx(66.67)


def test_counts_are_pooled_over_texts_not_averaged():
    # 1 unique of 3 bigrams, and 1 of 1: 2 of 4
    assert repetition(["a a a a", "b c"], 2, paper_exact=False) == 50


def test_a_phrase_that_two_texts_share_is_no_repetition():
    assert repetition(["a b c d e", "a b c d e"], 2) == 0


@pytest.mark.parametrize("paper_exact", [True, False])
@pytest.mark.parametrize("none", [[], [""], ["word"], ["two words"]])
def test_texts_without_n_grams_repeat_nothing(none, paper_exact):
    assert repetition(none, 3, paper_exact=paper_exact) == 0
    assert diversity(none, paper_exact=paper_exact) == 100


def test_units_other_than_words():
    assert repetition(["ああ ああ"], 2, "characters", paper_exact=False) == pytest.approx(200 / 3)
    assert repetition(["a-a-a"], 2, lambda text: text.split("-"), paper_exact=False) == 50


def test_distinct_counts_a_phrase_that_two_texts_share():
    # bigrams ab bc, ab bd: 3 distinct of 4; unigrams a b c, a b d: 4 of 6
    assert distinct(["a b c", "a b d"], 2) == 75
    assert distinct(["a b c", "a b d"], 1) == pytest.approx(100 * 4 / 6)
    assert distinct(["a"], 2) == 0


@pytest.mark.parametrize(("n", "units"), [(0, "whitespace"), (2, "syllables")])
def test_what_is_not_accepted(n, units):
    with pytest.raises(ValueError, match="must be"):
        repetition(["a b c"], n, units)
    with pytest.raises(ValueError, match="must be"):
        distinct(["a b c"], n, units)


@given(texts, st.booleans())
def test_diversity_is_a_percentage(corpus, paper_exact):
    assert 0 <= diversity(corpus, paper_exact=paper_exact) <= 100


@given(st.lists(st.text("abcdefgh", min_size=1), min_size=6, max_size=20, unique=True), st.booleans())
def test_saying_it_all_again_lowers_diversity(words, paper_exact):
    once, twice = " ".join(words), " ".join(words + words)
    assert diversity([once], paper_exact=paper_exact) == 100
    assert diversity([twice], paper_exact=paper_exact) < 100


@pytest.mark.parametrize(
    ("file", "column", "published"),
    [
        ("greedy", "output", 5.38),
        ("contrastive", "output", 92.54),
        ("nucleus", "output", 93.61),
        ("greedy", "reference_text", 93.62),
    ],
    ids=["greedy", "contrastive", "nucleus", "human"],
)
def test_the_paper_mode_gives_the_published_figures(file, column, published):
    path = DATA / f"webtext_gpt2-large_{file}.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not here: the published outputs are not part of the repository")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # Three figures come out to the last digit; nucleus is 93.601 on these outputs.
    assert diversity([row[column] for row in rows]) == pytest.approx(published, abs=0.01)
    assert abs(diversity([row[column] for row in rows], paper_exact=False) - published) < 0.05
