"""Coherence and perplexity against one token at a time in float64, without padding or batches."""

import math

import pytest
import torch

from decoding.errors import InputError, OptionError
from decoding.evals import miniature
from decoding.evals.metrics.likelihood import coherence, padded_batches, perplexity
from decoding.scoring.score import score

pytestmark = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
)

PREFIXES = ["The old clockmaker", "Once upon a time there was", "Tom"]
TEXTS = [" had a small house by the sea.", " a girl.", " went home, and his mother was glad to see him again."]


@pytest.fixture(scope="module")
def judge():
    model, tokenizer = miniature.load("expert", dtype=torch.float32)
    return model.eval(), tokenizer


@torch.no_grad()
def log_probabilities(model, ids, start):
    """Each token's, from a prefix of its own."""
    found = []
    for end in range(start, len(ids)):
        logits = model(torch.tensor([ids[:end]])).logits[0, -1].double()
        found.append(float(logits.log_softmax(-1)[ids[end]]))
    return found


def test_coherence_is_the_mean_of_texts_means(judge):
    model, tokenizer = judge
    found = coherence(PREFIXES, TEXTS, model, tokenizer)
    for prefix, text, mean in zip(PREFIXES, TEXTS, found.texts, strict=True):
        before, whole = tokenizer(prefix)["input_ids"], tokenizer(prefix + text)["input_ids"]
        assert whole[: len(before)] == before
        direct = log_probabilities(model, whole, len(before))
        # float32 log-probabilities of some units: 1e-6 each
        assert mean == pytest.approx(sum(direct) / len(direct), abs=1e-5)
    assert found.mean == pytest.approx(sum(found.texts) / 3)


def test_coherence_agrees_with_scoring(judge):
    model, tokenizer = judge
    found = coherence(PREFIXES, TEXTS, model, tokenizer).texts
    scored = [
        score(model, prefix, [text], tokenizer=tokenizer)[0] for prefix, text in zip(PREFIXES, TEXTS, strict=True)
    ]
    assert found == pytest.approx([float(scores.double().mean()) for scores in scored], abs=1e-5)


def test_perplexity_of_texts_and_of_all_tokens(judge):
    model, tokenizer = judge
    found = perplexity(TEXTS, model, tokenizer)
    direct = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        ids = ids if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id, *ids]
        direct.append(log_probabilities(model, ids, 1))
    assert found.texts == pytest.approx([math.exp(-sum(row) / len(row)) for row in direct], rel=1e-5)
    assert found.mean == pytest.approx(sum(found.texts) / 3)
    pooled = [log_prob for row in direct for log_prob in row]
    assert found.corpus == pytest.approx(math.exp(-sum(pooled) / len(pooled)), rel=1e-5)
    assert found.tokens == len(pooled)


@pytest.mark.parametrize("tokens_at_once", [1, 13, 40, 1000])
def test_figures_do_not_depend_on_batches(judge, tokens_at_once):
    texts = [*TEXTS, "", "a"]
    alone = [perplexity([text], *judge).texts[0] for text in texts]
    together = perplexity(texts, *judge, tokens_at_once=tokens_at_once).texts
    for one, other in zip(alone, together, strict=True):
        assert one is other is None or one == pytest.approx(other, rel=1e-5)


def test_empty_continuations_are_left_out(judge):
    found = coherence(["Tom", "Tom"], ["", TEXTS[2]], *judge)
    assert found.texts[0] is None
    assert found.mean == found.texts[1]
    assert math.isnan(coherence(["Tom"], [""], *judge).mean)


def test_texts_past_the_context_are_refused_or_cut_on_request(judge):
    long = ["the town " * 2000]
    with pytest.raises(InputError, match=r"text 0 has .* give max_length="):
        perplexity(long, *judge)
    with pytest.raises(InputError, match=r"text 0 has .* give max_length="):
        coherence(["the"], long, *judge)
    assert perplexity(long, *judge, max_length=20).tokens == 19
    assert coherence(["the"], long, *judge, max_length=20).mean < 0


def test_what_is_not_accepted(judge):
    with pytest.raises(InputError, match="1 prefixes and 2 texts"):
        coherence(["a"], ["b", "c"], *judge)
    with pytest.raises(InputError, match="no text"):
        perplexity([], *judge)
    with pytest.raises(OptionError, match="tokens_at_once=0"):
        perplexity(["a b"], *judge, tokens_at_once=0)


def test_batches_hold_every_sequence_once_and_no_more_tokens_than_asked():
    sequences = [[1] * n for n in (3, 7, 1, 0, 5, 5, 2)]
    seen = []
    for batch, ids, mask in padded_batches(sequences, 12, torch.device("cpu")):
        assert ids.numel() <= 12
        assert mask.sum(1).tolist() == [len(sequences[i]) for i in batch]
        assert (ids == mask).all()
        seen += batch
    assert sorted(seen) == [0, 1, 2, 4, 5, 6]
