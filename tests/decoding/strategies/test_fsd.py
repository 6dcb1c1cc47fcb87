"""FSD against n-grams counted one by one in Python and logits of full recomputation in float64."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import left_padded, random_ids, random_prompt, tiny_model

import decoding
from decoding import FSD, OptionError
from decoding.strategies.fsd import ngram_penalty

STEPS = 16


def _penalty(text: list[int], token: int, n: int, beta: float) -> float:
    """The smoothed n-gram probability of a token after a text, from counts of every n-gram."""
    penalty, rest = 0.0, 1.0
    for order in range(n, 0, -1):
        ngrams = Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))
        context = tuple(text[len(text) - order + 1 :])
        if len(context) < order - 1 or (count := ngrams[(*context, token)]) == 0:
            continue
        total = sum(found for ngram, found in ngrams.items() if ngram[:-1] == context)
        if order == 1:
            return penalty + rest * count / total
        penalty += rest * beta * count / (total + 1)
        rest *= 1 - beta
    return penalty


@torch.no_grad()
def _steps(
    model: Any, prompt: list[int], found: list[int], strategy: FSD, encoder: list[int] | None = None
) -> list[Any]:
    """The token to choose after the prompt and each of those found but the last, and the score of every candidate.

    Those found are right if they are those to choose. The whole text is read at once: no token sees those that follow.
    """
    model = copy.deepcopy(model).double()
    chosen, alpha, ids = [], strategy.penalty_alpha, torch.tensor([[*prompt, *found[:-1]]])
    read = {"input_ids": ids} if encoder is None else {"input_ids": torch.tensor([encoder]), "decoder_input_ids": ids}
    logits = model(**read, use_cache=False).logits[0]
    for place in range(len(found)):
        text = [*prompt, *found[:place]]
        probabilities = logits[len(text) - 1].softmax(-1)
        scores = {
            token: (1 - alpha) * float(probabilities[token]) - alpha * _penalty(text, token, strategy.n, strategy.beta)
            for token in probabilities.topk(strategy.top_k).indices.tolist()
        }
        chosen.append((max(scores, key=lambda token: scores[token]), scores))
    return chosen


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=14), min_size=1, max_size=3),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
def test_the_penalty_is_the_count_of_every_ngram(texts: list[list[int]], n: int, beta: float) -> None:
    width = max(map(len, texts))
    rows = torch.tensor([[-1] * (width - len(text)) + text for text in texts])
    candidates = torch.arange(5).expand(len(texts), -1)  # one that no text has among them
    right = torch.tensor([[_penalty(text, token, n, beta) for token in range(5)] for text in texts])
    torch.testing.assert_close(ngram_penalty(rows, candidates, n, beta), right, atol=1e-6, rtol=1e-6)


# N-grams are counted in the text, whatever model continues it.
SETTINGS = [FSD(), FSD(0.4, 5, 2, 0.5), FSD(0.8, 4, 1), FSD(0.7, 6, 4, 1.0), FSD(0.6, 3, 40)]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *(("llama", strategy) for strategy in SETTINGS),
        *((name, FSD()) for name in ("gpt2", "mistral-sliding", "mamba")),
    ],
    ids=repr,
)
def test_padded_batches_choose_the_tokens_of_the_oracle(name: str, strategy: FSD) -> None:
    model = tiny_model(name)
    # Prompts that repeat themselves, so that contexts of every length are found.
    prompts = [[*random_prompt(3, seed=1), *random_prompt(3, seed=1)], random_prompt(9, seed=2), [7, 7, 8]]
    batch = left_padded(prompts)
    output = decoding.generate(
        model, **batch, strategy=strategy, max_new_tokens=STEPS, return_dict_in_generate=True, output_scores=True
    )
    plain = decoding.generate(model, **batch, strategy=strategy, max_new_tokens=STEPS)
    assert plain.tolist() == output.sequences.tolist()
    for row, prompt in enumerate(prompts):
        found = output.sequences[row, 9:].tolist()
        for step, (token, scores) in enumerate(_steps(model, prompt, found, strategy)):
            given_scores = output.scores[step][row]
            assert {i for i, score in enumerate(given_scores.tolist()) if math.isfinite(score)} == set(scores)
            # Probabilities are rounded to float32 after the model, which is in float32 too.
            torch.testing.assert_close(
                given_scores[list(scores)], torch.tensor(list(scores.values())), atol=1e-4, rtol=1e-3
            )
            assert found[step] == token


def test_it_leaves_the_loops_of_greedy_search() -> None:
    model = tiny_model("llama")
    ids = random_ids(1, 8)
    greedy = model.generate(ids, max_new_tokens=60, do_sample=False)[0, 8:].tolist()
    ours = decoding.generate(model, ids, strategy=FSD(), max_new_tokens=60)[0, 8:].tolist()
    trigrams = [{tuple(text[i : i + 3]) for i in range(len(text) - 2)} for text in (greedy, ours)]
    assert len(trigrams[0]) < len(trigrams[1])
    weightless = decoding.generate(model, ids, strategy=FSD(penalty_alpha=0.0), max_new_tokens=60)
    assert weightless[0, 8:].tolist() == greedy


def test_padding_between_tokens_is_no_text() -> None:
    model, prompt = tiny_model("llama"), random_prompt(6, seed=3)
    ids = torch.tensor([[0, prompt[0], prompt[1], 0, 0, *prompt[2:]]])
    mask = (ids != 0).long()
    right = decoding.generate(model, torch.tensor([prompt]), strategy=FSD(), max_new_tokens=12)
    given = decoding.generate(model, ids, attention_mask=mask, strategy=FSD(), max_new_tokens=12)
    assert given[0, ids.shape[1] :].tolist() == right[0, len(prompt) :].tolist()


def test_an_encoder_decoder_counts_what_its_decoder_wrote() -> None:
    model, encoder, strategy = tiny_model("t5"), random_prompt(7, seed=4), FSD(0.7, 4, 2)
    tokens = decoding.generate(model, torch.tensor([encoder]), strategy=strategy, max_new_tokens=10)
    start, *found = tokens[0].tolist()
    assert start == model.config.decoder_start_token_id
    assert found == [token for token, _ in _steps(model, [start], found, strategy, encoder)]


def test_excluded_tokens_are_no_candidates() -> None:
    model, ids = tiny_model("llama"), random_ids(1, 8)
    free = decoding.generate(model, ids, strategy=FSD(), max_new_tokens=8)[0, 8:].tolist()
    banned = decoding.generate(model, ids, strategy=FSD(), max_new_tokens=8, bad_words_ids=[[free[0]], [free[2]]])
    assert not {free[0], free[2]} & set(banned[0, 8:].tolist())
    only = decoding.generate(
        model, ids, strategy=FSD(1.0, 5), max_new_tokens=8, prefix_allowed_tokens_fn=lambda *_: [9]
    )
    assert set(only[0, 8:].tolist()) == {9}


def test_beam_search_keeps_each_beams_own_counts() -> None:
    """Against beam search written out, each hypothesis scored by itself."""
    model, prompt, beams, strategy = tiny_model("llama"), [5, 9, 5, 9, 5], 3, FSD(0.6, 4)
    processor = strategy.logits_processor(model)
    found = model.generate(
        torch.tensor([prompt]), logits_processor=[processor], num_beams=beams, max_new_tokens=5, do_sample=False
    )
    hypotheses = [(0.0, prompt)]
    for _ in range(5):
        grown = [
            (score + gain, [*text, token])
            for score, text in hypotheses
            for token, gain in _steps(model, text, [0], strategy)[0][1].items()  # whatever comes then
        ]
        hypotheses = sorted(grown, key=lambda hypothesis: -hypothesis[0])[:beams]
    assert found[0].tolist() == hypotheses[0][1]


def test_sampling_draws_from_the_softmax_of_the_scores() -> None:
    model, ids = tiny_model("llama"), torch.tensor([[5, 9, 5, 9, 5]]).repeat(4000, 1)
    torch.manual_seed(0)
    output = decoding.generate(
        model, ids, strategy=FSD(0.6, 4), max_new_tokens=1, do_sample=True, temperature=0.3, top_k=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    expected = (output.scores[0][0] / 0.3).softmax(-1)
    drawn = output.sequences[:, -1].bincount(minlength=len(expected)) / 4000
    assert (expected > 0).sum() == 4
    assert (drawn - expected).abs().max() < 0.04  # four standard deviations of 4000 draws


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"penalty_alpha": 1.5}, "penalty_alpha=1.5: must be a number from 0 to 1"),
        ({"top_k": 0}, "top_k=0: must be a whole number from 1"),
        ({"n": 0}, "n=0: must be a whole number from 1"),
        ({"beta": -0.1}, "beta=-0.1: must be a number from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        FSD(**parameters)


def test_more_candidates_than_tokens_are_refused() -> None:
    with pytest.raises(OptionError, match="top_k=500: must be 1 to 120"):
        decoding.generate(tiny_model("llama"), random_ids(1, 4), strategy=FSD(top_k=500), max_new_tokens=2)
