"""Contrastive search against full recomputation of every candidate in float64."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from search_oracle import contrastive_search_steps, contrastive_search_tokens
from tiny_models import DECODER_ONLY, ENCODER_DECODER, VOCAB, left_padded, random_prompt, tiny_model

import decoding
from decoding.capabilities.branching import branching_of
from decoding.kernels.candidates import top_candidates

STEPS = 8
_model = functools.cache(tiny_model)


# Other settings on one model of each way to branch.
@pytest.mark.parametrize(
    ("name", "alpha", "k"), [*((name, 0.6, 4) for name in DECODER_ONLY), ("llama", 0.3, 7), ("mamba", 0.3, 7)]
)
def test_tokens_are_those_of_full_recomputation(name: str, alpha: float, k: int) -> None:
    model = _model(name)
    prompt = random_prompt(11, seed=1)
    tokens = decoding.generate(model, torch.tensor([prompt]), max_new_tokens=STEPS, penalty_alpha=alpha, top_k=k)
    found = tokens[0, 11:].tolist()
    assert found == contrastive_search_tokens(model, prompt, alpha, k, STEPS, expected=found)


# Mamba reads padding as text in its convolution state, so rows of a padded batch differ from rows alone in plain greedy
# search too; the others are held to the oracle.
@pytest.mark.parametrize("name", [name for name in DECODER_ONLY if name != "mamba"])
def test_left_padded_rows_are_those_of_full_recomputation(name: str) -> None:
    model = _model(name)
    prompts = [random_prompt(length, seed=length) for length in (5, 13, 1)]
    batch = left_padded(prompts)
    tokens = decoding.generate(model, **batch, max_new_tokens=STEPS, penalty_alpha=0.6, top_k=4)[:, 13:]
    for row, prompt in zip(tokens.tolist(), prompts, strict=True):
        assert row == contrastive_search_tokens(model, prompt, 0.6, 4, STEPS, expected=row)


@pytest.mark.parametrize("name", ENCODER_DECODER)
def test_encoder_decoder_models(name: str) -> None:
    model = _model(name)
    encoder = [random_prompt(7, seed=3), random_prompt(7, seed=4)]
    start = model.config.decoder_start_token_id
    tokens = decoding.generate(
        model, torch.tensor(encoder), max_new_tokens=10, penalty_alpha=0.6, top_k=4, num_beams=1, do_sample=False
    )
    for row, ids in zip(tokens.tolist(), encoder, strict=True):
        right = contrastive_search_tokens(model, [start], 0.6, 4, 10, encoder_ids=ids, expected=row[1:])
        assert row[1:] == right


def test_the_fast_way_of_branching_is_found_where_it_is_right() -> None:
    ways = {name: branching_of(_model(name)).way for name in ("llama", "mistral-sliding", "gemma2", "gpt2")}
    assert set(ways.values()) == {"shared prefix"}, ways
    assert branching_of(_model("mamba")).way == "fork"
    assert branching_of(_model("t5")).way == "fork"


@pytest.mark.parametrize("name", ["llama", "mamba"])
@pytest.mark.parametrize("settings", [{"penalty_alpha": 0.0, "top_k": 5}, {"penalty_alpha": 0.7, "top_k": 1}])
def test_no_penalty_or_no_choice_is_greedy_search(name: str, settings: dict[str, float]) -> None:
    ids = torch.tensor([random_prompt(9, seed=5)])
    assert decoding.generate(_model(name), ids, max_new_tokens=10, **settings).tolist() == _greedy(name)


@functools.cache
def _greedy(name: str) -> list[list[int]]:
    """A prompt of 9 tokens with what greedy search writes after it."""
    ids = torch.tensor([random_prompt(9, seed=5)])
    return _model(name).generate(ids, max_new_tokens=10, do_sample=False).tolist()


def test_scores_returned_are_contrastive_scores() -> None:
    model = tiny_model("llama")
    prompt = random_prompt(8, seed=6)
    output = decoding.generate(
        model, torch.tensor([prompt]), max_new_tokens=5, penalty_alpha=0.6, top_k=4,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for scores, (token, expected) in zip(
        output.scores, contrastive_search_steps(model, prompt, 0.6, 4, 5), strict=True
    ):
        finite = scores[0].isfinite().nonzero().flatten().tolist()
        assert sorted(finite) == sorted(expected)
        assert scores[0].argmax().item() == token
        # float32 against float64 over three layers
        torch.testing.assert_close(
            scores[0, list(expected)], torch.tensor(list(expected.values())), atol=1e-5, rtol=1e-4
        )


def test_padding_whose_embedding_is_zero_does_not_disturb() -> None:
    """4.55.4 turned such rows silently into greedy search: the zero vector's cosine was NaN."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0
    prompts = [random_prompt(4, seed=7), random_prompt(12, seed=8)]
    tokens = decoding.generate(model, **left_padded(prompts), max_new_tokens=STEPS, penalty_alpha=0.6, top_k=4)
    found = tokens[0, 12:].tolist()
    assert found == contrastive_search_tokens(model, prompts[0], 0.6, 4, STEPS, expected=found)


def test_a_mask_with_holes_keeps_what_it_hides_out_of_the_history() -> None:
    model = tiny_model("llama")
    prompt = random_prompt(10, seed=9)
    mask = torch.ones(1, 10, dtype=torch.long)
    mask[0, 3:5] = 0
    with_hole = decoding.generate(
        model, torch.tensor([prompt]), attention_mask=mask, max_new_tokens=8, penalty_alpha=0.9, top_k=4
    )
    without = prompt[:3] + prompt[5:]
    alone = decoding.generate(model, torch.tensor([without]), max_new_tokens=8, penalty_alpha=0.9, top_k=4)
    assert with_hole[0, 10:].tolist() == alone[0, 8:].tolist()


def test_half_precision_runs_and_scores_in_float32() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    output = decoding.generate(
        model, torch.tensor([random_prompt(8, seed=1)]), max_new_tokens=4, penalty_alpha=0.6, top_k=4,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert all(scores.dtype == torch.float32 for scores in output.scores)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty_alpha": 1.5}, "penalty_alpha=1.5: must be a number from 0 to 1"),
        ({"penalty_alpha": -0.1}, "penalty_alpha=-0.1"),
        ({"penalty_alpha": float("nan")}, "penalty_alpha=nan"),
        ({"penalty_alpha": "0.6"}, "penalty_alpha='0.6'"),
        ({"top_k": 0}, "top_k=0: must be a whole number from 1"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_k": True}, "top_k=True"),
    ],
)
def test_hyper_parameters_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(decoding.OptionError) as raised:
        decoding.ContrastiveSearch(**settings)  # type: ignore[arg-type]
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_more_candidates_than_tokens_are_refused() -> None:
    with pytest.raises(
        decoding.OptionError, match=f"top_k=500: must be 1 to {VOCAB}, the size of the model's vocabulary"
    ):
        decoding.generate(tiny_model("llama"), torch.tensor([[5, 6]]), penalty_alpha=0.6, top_k=500, max_new_tokens=2)


def test_every_token_may_be_a_candidate() -> None:
    model = tiny_model("llama")
    prompt = random_prompt(6, seed=2)
    tokens = decoding.generate(model, torch.tensor([prompt]), penalty_alpha=0.6, top_k=VOCAB, max_new_tokens=3)
    assert tokens[0, 6:].tolist() == contrastive_search_tokens(model, prompt, 0.6, VOCAB, 3)


def test_a_strategy_is_frozen_and_keeps_nothing_of_a_call() -> None:
    strategy = decoding.ContrastiveSearch()
    before = dataclasses.asdict(strategy)
    tiny_model("llama").generate(torch.tensor([[5, 6, 7]]), custom_generate=strategy, max_new_tokens=3)
    assert dataclasses.asdict(strategy) == before
    assert vars(strategy) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(("vocab", "k"), [(32000, 4), (50257, 8), (5000, 1), (5000, 4), (200, 5)])
def test_the_candidates_are_those_of_torch(vocab: int, k: int) -> None:
    values = torch.rand(3, vocab, generator=torch.Generator().manual_seed(vocab + k))
    values[1, -2:] = torch.tensor([2.0, 3.0])  # behind the last whole block
    best, where = top_candidates(values, k)
    expected = values.topk(k)
    assert best.tolist() == expected.values.tolist()
    assert where.tolist() == expected.indices.tolist()
