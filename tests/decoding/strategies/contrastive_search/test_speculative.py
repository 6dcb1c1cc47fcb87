"""Contrastive search with drafts, against full recomputation, and the branches of its rounds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scripted_drafts import drafted
from search_oracle import contrastive_search_tokens
from tiny_models import VOCAB, left_padded, random_prompt
from tiny_models import tiny_model as new_model
from torch import Tensor

import decoding
from decoding import ContrastiveSearch
from decoding.drafts.proposer import drafts_of
from decoding.strategies.contrastive_search.search_round import ChainAhead

NEW = 10
tiny_model = functools.cache(new_model)
PROMPTS = [random_prompt(4, 1), random_prompt(11, 2), random_prompt(2, 3)]


@pytest.fixture
def chains_held(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each round that began with a chain read ahead could go on with it."""
    held: list[bool] = []
    output_for = ChainAhead.output_for

    def noted(self: Any, *given: Any) -> Any:
        output = output_for(self, *given)
        held.append(output is not None)
        return output

    monkeypatch.setattr(ChainAhead, "output_for", noted)
    return held


@pytest.mark.parametrize(("name", "window"), [("llama", None), ("llama", 3), ("gemma2", 3), ("gpt2", None)])
def test_tokens_are_those_of_full_recomputation(name: str, window: int | None, chains_held: list[bool]) -> None:
    model, inputs = tiny_model(name), left_padded(PROMPTS)
    width = inputs["input_ids"].shape[1]
    texts = [
        [*inputs["input_ids"][row].tolist(), *contrastive_search_tokens(model, prompt, 0.6, 4, NEW, window=window)]
        for row, prompt in enumerate(PROMPTS)
    ]
    expected = torch.tensor(texts)
    strategy = ContrastiveSearch(0.6, 4, max_history=window)
    for script in ({"wrong": 0.25}, {"wrong": 0.0, "short": 0.0}):
        tokens, proposer = drafted(
            model, expected, inputs, strategy=strategy, script=script, max_new_tokens=NEW, do_sample=False
        )
        assert torch.equal(tokens[:, width:], expected[:, width:])
        assert any(len(set(taken)) > 1 for taken in proposer.taken) or not script["wrong"]
    assert any(chains_held)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_numbers_of_candidates(k: int, rows: int) -> None:
    model, inputs = tiny_model("llama"), left_padded(PROMPTS[:rows])
    options = {"strategy": ContrastiveSearch(0.7, k), "max_new_tokens": NEW, "do_sample": False}
    expected = decoding.generate(model, **inputs, **options)
    for draft_tokens, wrong in ((5, 0.3), (1, 1.0)) if rows > 1 else ((1, 0.3),):
        tokens, _ = drafted(
            model, expected, inputs, draft_tokens=draft_tokens, script={"wrong": wrong, "seed": k}, **options
        )
        assert torch.equal(tokens, expected)


def test_drafts_that_are_candidates_and_are_not_chosen(chains_held: list[bool]) -> None:
    """The most probable token is a candidate everywhere, and seldom the choice: its slot is passed over, or kept.

    So is the candidate that a chain was read behind: the round may end with another, or before it.
    """
    model, inputs = tiny_model("llama"), left_padded(PROMPTS)
    options = {"strategy": ContrastiveSearch(0.6, 4), "max_new_tokens": 16, "do_sample": False}
    expected = decoding.generate(model, **inputs, **options)
    with torch.no_grad():
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 16), value=1)
        logits = model(input_ids=expected, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    other = expected.clone()
    width = inputs["input_ids"].shape[1]
    greedy = logits[:, width - 1 : -1].argmax(-1)
    other[:, width:] = greedy
    same = (greedy == expected[:, width:]).float().mean()
    assert 0.1 < same < 0.9

    def ahead(self: Any, texts: Any, behind: Any, most: Any) -> Any:
        rows = []
        for row, (text, more, n) in enumerate(zip(texts, behind, most, strict=True)):
            begin = width - len(PROMPTS[row]) + len(text) + len(more)
            rows.append(other[row, begin : begin + n].tolist())
        return drafts_of(rows, torch.device("cpu"))

    def proposed(self: Any, texts: Any, most: Any) -> Any:
        rows = []
        for row, (text, n) in enumerate(zip(texts, most, strict=True)):
            place = len(text) - len(PROMPTS[row])
            # The token that is chosen, then the most probable ones.
            rows.append(
                [*expected[row, width + place :][: min(n, 1)].tolist(), *other[row, width + place + 1 :].tolist()][:n]
            )
        return drafts_of(rows, torch.device("cpu"))

    for draft_tokens in (1, 2, 4):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("decoding.drafts.prompt_lookup.PromptLookup.propose", proposed)
            patch.setattr("decoding.drafts.prompt_lookup.PromptLookup.propose_behind", ahead)
            tokens = decoding.generate(model, **inputs, drafts="prompt-lookup", draft_tokens=draft_tokens, **options)
        assert torch.equal(tokens, expected)
    assert False in chains_held


@contextlib.contextmanager
def _passes(model: Any) -> Iterator[list[tuple[int, int]]]:
    """The shape (rows, tokens) of every pass of the model in this block."""
    passes: list[tuple[int, int]] = []

    def noted(_module: Any, arguments: tuple[Tensor, ...]) -> None:
        passes.append(tuple(arguments[0].shape))

    handle = model.get_input_embeddings().register_forward_pre_hook(noted)
    try:
        yield passes
    finally:
        handle.remove()


def _without_drafts(rows: int, new_tokens: int, **more: Any) -> tuple[Any, Any, dict[str, Any], Tensor]:
    model, inputs = tiny_model("llama"), left_padded(PROMPTS[:rows])
    options = {"strategy": ContrastiveSearch(), "max_new_tokens": new_tokens, "do_sample": False, **more}
    expected = decoding.generate(model, **inputs, **options)
    drafted(model, expected, inputs, **options)  # finds out once how the model branches
    return model, inputs, options, expected


def test_a_round_costs_one_pass_where_drafts_are_right() -> None:
    model, inputs, options, expected = _without_drafts(3, 21)
    script = {"wrong": 0.0, "short": 0.0}
    with _passes(model) as passes:
        tokens, proposer = drafted(model, expected, inputs, draft_tokens=4, script=script, **options)
    assert torch.equal(tokens, expected)
    # Of each draft's place k - 1 others, then all k; and the chain of the next round, if there is one.
    prompt, first, chain, leaves = (3, 11), (3, 4), (3, 4), (3, 4 * 3 + 4)
    with_chain = (3, leaves[1] + 4)
    assert passes == [prompt, first, chain, with_chain, with_chain, with_chain, leaves]
    assert proposer.taken == [(5, 5, 5)] * 3
    with _passes(model) as passes:  # nobody proposes the next round's chain
        tokens, _ = drafted(model, expected, inputs, draft_tokens=4, script={**script, "ahead": False}, **options)
    assert torch.equal(tokens, expected)
    assert passes == [prompt, first, *[chain, leaves] * 4]


def test_a_round_costs_two_passes_where_drafts_are_wrong() -> None:
    model, inputs, options, expected = _without_drafts(2, 7)
    with _passes(model) as passes:
        tokens, proposer = drafted(model, expected, inputs, draft_tokens=4, script={"wrong": 1.0}, **options)
    assert torch.equal(tokens, expected)
    assert len(passes) <= 2 + 2 * len(proposer.rounds)


def test_a_long_text_of_right_drafts_costs_a_pass_a_round_with_auto() -> None:
    """Chains that are read ahead are as long as the next round's."""
    model, inputs, options, expected = _without_drafts(1, 40)
    with pytest.MonkeyPatch.context() as patch, _passes(model) as passes:
        patch.setattr("decoding.generation.strategy.experience_of", lambda *_kind: None)
        patch.setattr("decoding.drafts.round_cost.RoundCost.add", lambda *_round: None)  # the clock says nothing
        tokens, proposer = drafted(
            model, expected, inputs, draft_tokens="auto", script={"wrong": 0.0, "short": 0.0}, **options
        )
    assert torch.equal(tokens, expected)
    assert [taken for (taken,) in proposer.taken] == [16, 16]
    assert len(passes) == 3 + len(proposer.rounds)


@pytest.mark.parametrize(
    "more", [{}, {"do_sample": True, "seeds": [3, 5, 8], "top_k": 20}, {"repetition_penalty": 1.3, "eos_token_id": [7]}]
)
def test_chains_read_ahead_change_no_token(more: dict[str, Any], chains_held: list[bool]) -> None:
    """Rows whose drafts are right for a while, some of which have none now and then."""
    for rows in (3,) if more else (1, 3):
        model, inputs, options, expected = _without_drafts(rows, 18, **more)
        chains_held.clear()
        for seed in range(2):
            script = {"wrong": 0.05, "short": 0.05, "seed": seed}
            tokens, _ = drafted(model, expected, inputs, draft_tokens=2, script=script, **options)
            assert torch.equal(tokens, expected)
        assert any(chains_held), rows


def test_the_same_drafts_behind_another_end_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is a candidate, so a chain is read ahead in every round; the next round's drafts are the same."""
    model, inputs = tiny_model("llama"), {"input_ids": torch.tensor([PROMPTS[0]])}
    options = {"strategy": ContrastiveSearch(0.6, VOCAB), "max_new_tokens": 14, "do_sample": False}
    expected = decoding.generate(model, **inputs, **options)

    token = int(
        expected[0, len(PROMPTS[0]) + 4]
    )  # which is right once at least, behind an end that it did not foretell

    def same(self: Any, *given: Any) -> Any:
        return drafts_of([[token] * n for n in given[-1]], torch.device("cpu"))

    monkeypatch.setattr("decoding.drafts.prompt_lookup.PromptLookup.propose", same)
    monkeypatch.setattr("decoding.drafts.prompt_lookup.PromptLookup.propose_behind", same)
    tokens = decoding.generate(model, **inputs, drafts="prompt-lookup", draft_tokens=2, **options)
    assert torch.equal(tokens, expected)


def test_scores_are_those_without_drafts() -> None:
    model, inputs = tiny_model("gemma2"), left_padded(PROMPTS)
    options = {"strategy": ContrastiveSearch(), "max_new_tokens": 12, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    expected = decoding.generate(model, **inputs, **options)
    output, _ = drafted(model, expected.sequences, inputs, **options)
    for scores, sought in zip(output.scores, expected.scores, strict=True):
        torch.testing.assert_close(scores, sought, atol=1e-4, rtol=1e-3)  # float32, sums in another order
