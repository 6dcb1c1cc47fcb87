"""MAUVE against mauve-text reading the same tokens with its own featurizer."""

import random

import pytest
import torch
from tiny_models import tiny_model

from decoding.errors import InputError
from decoding.evals import miniature
from decoding.evals.metrics.distribution import features, mauve

pytest.importorskip("mauve")
pytestmark = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
)
WORDS = ["the", "old", "town", "lies", "by", "a", "quiet", "sea", "and", "every", "clockmaker", "has", "a", "house"]


@pytest.fixture(scope="module")
def judge():
    model, tokenizer = miniature.load("expert", dtype=torch.float32)
    return model.eval(), tokenizer


def texts(seed, words=WORDS):
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(30)]


def test_the_score_is_that_of_mauve_text(judge):
    from mauve import compute_mauve
    from mauve.utils import featurize_tokens_from_model

    model, tokenizer = judge
    generated, human = texts(0, WORDS[:4]), texts(1)
    found = mauve(generated, human, model, tokenizer, max_length=8, tokens_at_once=40)
    own = {}
    for name, given in (("p", human), ("q", generated)):
        tokens = [tokenizer(text, return_tensors="pt", truncation=True, max_length=8)["input_ids"] for text in given]
        own[f"{name}_features"] = featurize_tokens_from_model(model, tokens, 1).numpy()
    direct = compute_mauve(**own, seed=25)
    assert found.score == pytest.approx(100 * direct.mauve, abs=1e-3)
    assert (found.buckets, found.texts) == (3, (30, 30))


def test_features_do_not_depend_on_batches():
    model = tiny_model("gpt2")
    sequences = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    together = features(sequences, model)
    for row, sequence in zip(together, sequences, strict=True):
        assert row == pytest.approx(features([sequence], model)[0], abs=1e-5)


def test_the_same_texts_are_closer_than_others(judge):
    human = texts(1)
    same, other = mauve(human, human, *judge), mauve(texts(2, ["cat"]), human, *judge)
    assert same.score == pytest.approx(100, abs=1e-6)
    assert other.score < 50


def test_pairs_are_cut_to_the_shorter_of_the_two(judge):
    model, tokenizer = judge
    human = texts(1)
    longer = [f"{text} {text}" for text in human]
    # Both begin with the same tokens, so that nothing is left that differs.
    assert mauve(longer, human, model, tokenizer, same_length=True).score == pytest.approx(100, abs=1e-6)
    assert mauve(["", *longer], ["left out", *human], model, tokenizer, same_length=True).texts == (30, 30)


def test_what_is_not_accepted(judge):
    with pytest.raises(InputError, match="at least 2 of each"):
        mauve(["a", ""], ["b", "c"], *judge)
    with pytest.raises(InputError, match="in pairs"):
        mauve(["a", "b"], ["a", "b", "c"], *judge, same_length=True)
