"""BLEU, chrF and ROUGE against the packages themselves; self-BLEU against sacrebleu on every text and its others."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.errors import InputError, OptionError
from decoding.evals.metrics.overlap import bleu, character_counts, chrf, chrf_of_counts, rouge, self_bleu

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

IWSLT = Path(__file__).resolve().parents[4] / "shared" / "data" / "translation" / "iwslt14_de-en_test1000.jsonl"
WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "ran", "fast", "and", "slept", "."]
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@given(st.lists(st.tuples(sentences, sentences, sentences), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_corpus_figures_are_those_of_sacrebleu(rows):
    texts, first, second = map(list, zip(*rows, strict=True))
    pairs = list(zip(first, second, strict=True))
    assert bleu(texts, first).score == sacrebleu.corpus_bleu(texts, [first]).score
    assert bleu(texts, pairs).score == sacrebleu.corpus_bleu(texts, [first, second]).score
    assert chrf(texts, pairs, word_order=2).score == sacrebleu.corpus_chrf(texts, [first, second], word_order=2).score


# Any text; few characters, so that n-grams meet; and what may or may not count as a space.
passages = (
    st.text(max_size=12)
    | st.text("aб ไ字.\n", max_size=9)
    | st.text("ab e\u0301\u00a0\u200b\u3000\x1c\x85", max_size=9)
)
compared = st.tuples(passages, passages) | st.tuples(passages, passages, passages).map(
    lambda parts: ("".join(parts[:2]), "".join(parts[1:]))  # with a piece in common
)


@given(st.lists(compared, min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_chrf_of_added_counts_is_sacrebleus(rows):
    """Counts of texts and references in any script, perhaps empty, equal sacrebleu's: each alone, and all together."""
    counts = [character_counts(text, reference) for text, reference in rows]
    for row_counts, (text, reference) in zip(counts, rows, strict=True):
        assert chrf_of_counts(row_counts) == pytest.approx(sacrebleu.sentence_chrf(text, [reference]).score, rel=1e-12)
    texts, references = map(list, zip(*rows, strict=True))
    total = chrf_of_counts([sum(column) for column in zip(*counts, strict=True)])
    assert total == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score, rel=1e-12)
    assert total == pytest.approx(chrf(texts, references).score, rel=1e-12)


def test_a_text_may_have_more_references_than_another():
    texts = ["the cat sat on the mat", "the dog ran"]
    first, second = ["a cat sat on the mat", "a dog ran"], ["the cat sat on it", None]
    found = bleu(texts, [[first[0], second[0]], [first[1]]])
    assert found.score == sacrebleu.corpus_bleu(texts, [first, second]).score


def test_the_signature_says_how_words_were_cut():
    text, other = "今天天气很好啊", "今天天气很好"
    assert bleu([text], [other]).score == 0  # one long word
    found = bleu([text], [other], tokenize="zh", lowercase=True)
    assert found.score == sacrebleu.corpus_bleu([text], [[other]], tokenize="zh", lowercase=True).score > 50
    assert "tok:zh" in found.signature
    assert "case:lc" in found.signature


@pytest.mark.skipif(not IWSLT.exists(), reason="the published translations are not part of the repository")
def test_published_translations_score_as_under_sacrebleu():
    rows = [json.loads(line) for line in IWSLT.read_text(encoding="utf-8").splitlines()[:200]]
    texts, references = [row["opt27b_contrastive"] for row in rows], [row["en"] for row in rows]
    assert bleu(texts, references).score == sacrebleu.corpus_bleu(texts, [references]).score
    assert chrf(texts, references).score == sacrebleu.corpus_chrf(texts, [references]).score


def test_rouge_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    texts, references = ["the cats sat.\nIt ran.", "a dog"], ["the cat sat.\nIt slept.", "the dog"]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    direct = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    found = rouge(texts, references)
    assert found == {name: pytest.approx(50 * (direct[0][name].fmeasure + direct[1][name].fmeasure)) for name in found}
    assert list(found) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def test_rouge_sees_other_scripts_through_units_only():
    text = ["Кошка сидит на ковре"]
    assert rouge(text, text)["rougeL"] == 0  # rouge_score drops what is not a-z
    assert rouge(text, text, "whitespace")["rougeL"] == 100
    assert rouge(["今天天气很好"], ["今天天气不好"], "characters")["rouge1"] == pytest.approx(100 * 5 / 6)


def test_the_best_of_several_references_counts_for_rouge():
    assert rouge(["the dog ran"], [["a cat", "the dog ran"]])["rougeL"] == 100


def sentence_bleu_against_others(texts):
    """The definition: sacrebleu's sentence BLEU, every other text a reference."""
    scores = [
        sacrebleu.sentence_bleu(
            text, texts[:i] + texts[i + 1 :], tokenize="none", smooth_method="floor", smooth_value=0.1
        ).score
        for i, text in enumerate(texts)
    ]
    return sum(scores) / len(scores)


@given(st.lists(sentences, min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_self_bleu_is_the_mean_of_sentence_bleus(texts):
    assert self_bleu(texts) == pytest.approx(sentence_bleu_against_others(texts), abs=1e-9)


def test_self_bleu_of_more_texts_than_pairs_could_be_taken_of():
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=20)) for _ in range(3000)]  # 9 million pairs
    assert 0 < self_bleu(texts) <= 100


def test_self_bleu_at_its_ends():
    assert self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(100)
    assert self_bleu(["a b c d", "e f g h"]) == 0
    assert self_bleu(["今天天气", "今天天气"], "characters") == pytest.approx(100)
    assert self_bleu(["", "a"]) == 0
    assert not math.isnan(self_bleu(["", ""]))


@pytest.mark.parametrize("metric", [bleu, chrf, rouge])
def test_texts_and_references_must_match(metric):
    with pytest.raises(InputError, match="2 texts and 1 references"):
        metric(["a", "b"], ["a"])
    with pytest.raises(InputError, match="no reference"):
        metric(["a"], [[]])
    with pytest.raises(InputError, match="no reference"):
        metric([], [])


def test_what_is_not_accepted():
    with pytest.raises(OptionError, match="must be"):
        bleu(["a"], ["a"], tokenize="words")
    with pytest.raises(InputError, match="at least 2"):
        self_bleu(["a"])
    with pytest.raises(OptionError, match="order=0"):
        self_bleu(["a", "b"], order=0)
