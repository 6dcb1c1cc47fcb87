"""Adaptive contrastive search against full recomputation in float64, one row and one candidate at a time."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from scripted_drafts import drafted
from search_oracle import adaptive_search_steps
from tiny_models import left_padded, random_ids, random_prompt, sharper_model, tiny_model

import decoding
from decoding import AdaptiveContrastiveSearch, ContrastiveSearch, OptionError
from decoding.evals import miniature
from decoding.strategies.contrastive_search.adaptive import UncertaintyRule

STEPS = 6
PROMPTS = [random_prompt(9, 1), random_prompt(4, 2), random_prompt(1, 3)]


def _new_model(name: str) -> Any:
    """Wide logits, whose entropy is not the same at every step."""
    if name != "miniature":
        return sharper_model(name) if name != "t5" else tiny_model("t5")
    model, _ = miniature.load("expert")
    model.generation_config.eos_token_id = None
    return model


_model = functools.cache(_new_model)


def _oracle(name: str, prompt: list[int], strategy: AdaptiveContrastiveSearch, steps: int = STEPS, **more: Any) -> Any:
    return adaptive_search_steps(
        _model(name), prompt, strategy.q, strategy.min_top_k, strategy.max_top_k, steps, **more
    )


RULES = [AdaptiveContrastiveSearch(), AdaptiveContrastiveSearch(8.0), AdaptiveContrastiveSearch(30.0, 1, 7)]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *(("llama", strategy) for strategy in RULES),
        # A trained model, and other ways to branch, which no rule sees.
        *zip(("miniature", "mistral-sliding", "bloom"), (RULES[1], RULES[0], RULES[2]), strict=True),
    ],
)
def test_padded_batches_are_those_of_full_recomputation(name: str, strategy: AdaptiveContrastiveSearch) -> None:
    model, batch = _model(name), left_padded(PROMPTS)
    tokens = decoding.generate(model, **batch, strategy=strategy, max_new_tokens=STEPS)
    output = decoding.generate(
        model, **batch, strategy=strategy, max_new_tokens=STEPS, return_dict_in_generate=True, output_scores=True
    )
    assert tokens.equal(output.sequences)
    numbers = []
    for row, prompt in enumerate(PROMPTS):
        found = tokens[row, 9:].tolist()
        for step, (token, expected) in enumerate(_oracle(name, prompt, strategy, expected=found)):
            scores = output.scores[step][row]
            assert sorted(scores.isfinite().nonzero().flatten().tolist()) == sorted(expected)
            numbers.append(len(expected))
            # Probabilities and states of float32 against float64 over three layers.
            torch.testing.assert_close(
                scores[list(expected)], torch.tensor(list(expected.values())), atol=1e-4, rtol=1e-3
            )
            assert tokens[row, 9 + step].item() == token
    assert len(set(numbers)) > 2 or strategy.q == 1  # which answers to large distances alone


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_one_prompt_alone(name: str) -> None:
    strategy = AdaptiveContrastiveSearch(8.0)
    tokens = decoding.generate(_model(name), torch.tensor(PROMPTS[:1]), strategy=strategy, max_new_tokens=STEPS)
    found = tokens[0, 9:].tolist()
    assert found == [token for token, _ in _oracle(name, PROMPTS[0], strategy, expected=found)]


def test_an_encoder_decoder() -> None:
    model, encoder, strategy = _model("t5"), random_prompt(7, seed=4), AdaptiveContrastiveSearch(8.0)
    tokens = decoding.generate(model, torch.tensor([encoder]), strategy=strategy, max_new_tokens=8)
    start = model.config.decoder_start_token_id
    right = _oracle("t5", [start], strategy, 8, encoder_ids=encoder, expected=tokens[0, 1:].tolist())
    assert tokens[0, 1:].tolist() == [token for token, _ in right]


def test_a_call_remembers_nothing_of_the_one_before() -> None:
    """The authors' code keeps its medians from one prompt to the next."""
    other, strategy = _new_model("gpt2"), AdaptiveContrastiveSearch(8.0)
    texts = [torch.tensor([prompt]) for prompt in PROMPTS[1:]]
    alone = [decoding.generate(_new_model("llama"), text, strategy=strategy, max_new_tokens=STEPS) for text in texts]
    model = _new_model("llama")
    processor = strategy.logits_processor(_new_model("llama"))
    for _ in range(2):
        decoding.generate(other, texts[1], strategy=strategy, max_new_tokens=STEPS)  # another model's uncertainty
        for text, expected in zip(texts, alone, strict=True):
            options = {"max_new_tokens": STEPS, "do_sample": False}
            assert decoding.generate(model, text, strategy=strategy, **options).equal(expected)
            assert model.generate(text, logits_processor=[processor], **options).equal(expected)


def test_a_row_remembers_nothing_of_its_neighbours_which_end_before_it() -> None:
    model, strategy = _new_model("llama"), AdaptiveContrastiveSearch(8.0)
    alone = [
        decoding.generate(model, torch.tensor([prompt]), strategy=strategy, max_new_tokens=STEPS)[0, len(prompt) :]
        for prompt in PROMPTS
    ]
    end = int(alone[0][3])
    together = decoding.generate(
        model, **left_padded(PROMPTS), strategy=strategy, max_new_tokens=STEPS, eos_token_id=end, pad_token_id=0
    )
    for row, text in enumerate(alone):
        text = text.tolist()
        text = text[: text.index(end) + 1] if end in text else text
        assert together[row, 9:].tolist()[: len(text)] == text


def test_the_same_k_at_every_step_leaves_alpha_to_follow_the_candidates() -> None:
    """And with k = 1 there is no choice."""
    model, batch = _model("llama"), left_padded(PROMPTS)
    greedy = model.generate(**batch, max_new_tokens=STEPS, do_sample=False)
    one = decoding.generate(model, **batch, strategy=AdaptiveContrastiveSearch(1.0, 1, 1), max_new_tokens=STEPS)
    assert one.equal(greedy)
    first = decoding.generate(model, **batch, strategy=AdaptiveContrastiveSearch(5.0, 6, 6), max_new_tokens=1)
    assert first.equal(decoding.generate(model, **batch, strategy=ContrastiveSearch(0.5, 6), max_new_tokens=1))


def test_medians_far_from_the_entropy_of_few_candidates_give_a_number() -> None:
    """Where the median of 15 candidates is above the logarithm of 5, the distance is below -1."""
    rule = UncertaintyRule(1.0, 5, 15)
    flat = torch.full((1, 1, 200), 1 / 200)
    sure = torch.zeros(1, 1, 200).index_fill_(2, torch.tensor([7]), 1.0)
    for distribution, counts in ((flat, 10), (flat, 10), (flat, 10), (sure, 5)):
        limits = rule.limits(distribution, distribution.topk(15).values)
        assert limits.counts is not None
        assert limits.counts.tolist() == [[counts]]
        rule.accept()
    assert limits.penalty_alpha.tolist() == [[0.0]]  # type: ignore[union-attr]


def test_medians_are_of_the_places_that_were_accepted_of_each_row() -> None:
    generator = torch.Generator().manual_seed(3)
    p = (3 * torch.randn(2, 6, 50, generator=generator)).softmax(-1)
    best = p.topk(9).values
    drafted, plain = UncertaintyRule(4.0, 3, 9), [UncertaintyRule(4.0, 3, 9) for _ in range(2)]
    drafted.limits(p[:, :3], best[:, :3])  # of which row 0 keeps two places, and row 1 all
    drafted.accept([2, 3])
    for row, kept in ((0, [0, 1]), (1, [0, 1, 2])):
        for place in kept:
            plain[row].limits(p[row : row + 1, place : place + 1], best[row : row + 1, place : place + 1])
            plain[row].accept()
    found = drafted.limits(p[:, 3:], best[:, 3:])
    for row in range(2):
        right = plain[row].limits(p[row : row + 1, 3:], best[row : row + 1, 3:])
        assert found.counts is not None
        assert right.counts is not None
        assert found.counts[row].equal(right.counts[0])
        torch.testing.assert_close(found.penalty_alpha[row], right.penalty_alpha[0])  # type: ignore[index]


@pytest.mark.parametrize("name", ["llama", "miniature"])
def test_drafts_change_no_token(name: str) -> None:
    """Rows accept different numbers of them, and have k of their own at each place."""
    model, batch, strategy = _model(name), left_padded(PROMPTS), AdaptiveContrastiveSearch(20.0)
    options: dict[str, Any] = {"strategy": strategy, "max_new_tokens": 14, "do_sample": False}
    expected = decoding.generate(model, **batch, **options)
    for seed in range(2):
        tokens, proposer = drafted(model, expected, batch, script={"wrong": 0.25, "seed": seed}, **options)
        assert tokens.equal(expected)
        assert any(len(set(taken)) > 1 for taken in proposer.taken)


def test_excluded_tokens_are_no_candidates() -> None:
    model, ids = tiny_model("llama"), random_ids(1, 8)
    free = decoding.generate(model, ids, strategy=AdaptiveContrastiveSearch(), max_new_tokens=8)[0, 8:].tolist()
    options = {"strategy": AdaptiveContrastiveSearch(), "max_new_tokens": 8}
    banned = decoding.generate(model, ids, **options, bad_words_ids=[[free[0]], [free[2]]])
    assert not {free[0], free[2]} & set(banned[0, 8:].tolist())
    only = decoding.generate(model, ids, **options, prefix_allowed_tokens_fn=lambda *_: [9])
    assert set(only[0, 8:].tolist()) == {9}


def test_explanations_have_the_candidates_of_each_step() -> None:
    model, batch, strategy = _model("llama"), left_padded(PROMPTS), AdaptiveContrastiveSearch(8.0)
    sequences = decoding.generate(model, **batch, strategy=strategy, max_new_tokens=STEPS)
    explained = decoding.explain(model, sequences, strategy, alternatives=15, **batch, max_new_tokens=STEPS)
    for explanation, prompt in zip(explained, PROMPTS, strict=True):
        found = [step.chosen.token for step in explanation.steps]
        right = _oracle("llama", prompt, strategy, expected=found)
        for step, (token, scores) in zip(explanation.steps, right, strict=True):
            candidates = [c for c in (step.chosen, *step.rejected) if c.score is not None]
            assert step.chosen.token == token
            assert step.choices == step.settings["top_k"] == len(scores)
            assert {candidate.token for candidate in candidates} == set(scores)
            assert all(math.isclose(c.score or 0.0, scores[c.token], abs_tol=1e-4) for c in candidates)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"q": 0}, "q=0: must be a number above 0"),
        ({"min_top_k": 0}, "min_top_k=0: must be a whole number from 1"),
        ({"max_top_k": 4}, "max_top_k=4: must not be below min_top_k=5"),
        ({"max_history": 0}, "max_history=0: must be a whole number from 1, or None for the whole text"),
    ],
)
def test_values_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AdaptiveContrastiveSearch(**parameters)


def test_more_candidates_than_tokens_are_refused() -> None:
    strategy = AdaptiveContrastiveSearch(max_top_k=500)
    with pytest.raises(OptionError, match="max_top_k=500: must be 1 to 120"):
        decoding.generate(tiny_model("llama"), random_ids(1, 4), strategy=strategy, max_new_tokens=2)
