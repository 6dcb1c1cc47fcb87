"""Contrastive search with drafts, against full recomputation, and the branches of its rounds."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from scripted_drafts import drafted
from search_oracle import contrastive_search_tokens
from tiny_models import left_padded, random_prompt
from tiny_models import tiny_model as new_model
from torch import Tensor

import decoding
from decoding import ContrastiveSearch
from decoding.strategies.contrastive_search import speculative

NEW = 10
tiny_model = functools.cache(new_model)
PROMPTS = [random_prompt(4, 1), random_prompt(11, 2), random_prompt(2, 3)]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_tokens_are_those_of_full_recomputation(name: str, window: int | None) -> None:
    model, inputs = tiny_model(name), left_padded(PROMPTS)
    width = inputs["input_ids"].shape[1]
    texts = [
        [*inputs["input_ids"][row].tolist(), *contrastive_search_tokens(model, prompt, 0.6, 4, NEW, window=window)]
        for row, prompt in enumerate(PROMPTS)
    ]
    expected = torch.tensor(texts)
    strategy = ContrastiveSearch(0.6, 4, max_history=window)
    for seed in range(2):
        tokens, proposer = drafted(
            model, expected, inputs, strategy=strategy, script={"wrong": 0.25, "seed": seed},
            max_new_tokens=NEW, do_sample=False,
        )  # fmt: skip
        assert torch.equal(tokens[:, width:], expected[:, width:])
        assert any(len(set(taken)) > 1 for taken in proposer.taken)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_numbers_of_candidates(k: int, rows: int) -> None:
    model, inputs = tiny_model("llama"), left_padded(PROMPTS[:rows])
    options = {"strategy": ContrastiveSearch(0.7, k), "max_new_tokens": 16, "do_sample": False}
    expected = decoding.generate(model, **inputs, **options)
    for draft_tokens in (1, 5):
        for wrong in (0.3, 1.0):
            tokens, _ = drafted(
                model, expected, inputs, draft_tokens=draft_tokens, script={"wrong": wrong, "seed": k}, **options
            )
            assert torch.equal(tokens, expected)


def test_drafts_that_are_candidates_and_are_not_chosen() -> None:
    """The most probable token is a candidate everywhere, and seldom the choice: its slot is passed over, or kept."""
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

    def proposed(self: Any, texts: Any, most: Any) -> Any:
        from decoding.drafts.proposer import drafts_of

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
            tokens = decoding.generate(model, **inputs, drafts="prompt-lookup", draft_tokens=draft_tokens, **options)
        assert torch.equal(tokens, expected)


def test_a_round_costs_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_model("llama"), left_padded(PROMPTS)
    options = {"strategy": ContrastiveSearch(), "max_new_tokens": 21, "do_sample": False}
    expected = decoding.generate(model, **inputs, **options)
    drafted(model, expected, inputs, **options)
    passes: list[tuple[int, ...]] = []

    def noted(_module: Any, arguments: tuple[Tensor, ...]) -> None:
        passes.append(tuple(arguments[0].shape))

    rounds: list[Any] = []
    read = speculative.SpeculativeSearch.read

    def counted(self: Any, *arguments: Any) -> None:
        rounds.append(arguments)
        read(self, *arguments)

    monkeypatch.setattr(speculative.SpeculativeSearch, "read", counted)
    handle = model.get_input_embeddings().register_forward_pre_hook(noted)
    tokens, _ = drafted(model, expected, inputs, draft_tokens=4, script={"wrong": 0.0, "short": 0.0}, **options)
    handle.remove()
    assert torch.equal(tokens, expected)
    # The prompt and its candidates; then four rounds, each of four drafts and one more token.
    assert len(rounds) == 4
    assert len(passes) == 2 + 2 * 4
    chain, leaves = passes[2::2], passes[3::2]
    assert set(chain) == {(3, 4)}
    assert all(shape == (3, 4 * 3 + 4) for shape in leaves)  # of each draft's place k - 1 others, then all k


def test_scores_are_those_without_drafts() -> None:
    model, inputs = tiny_model("gemma2"), left_padded(PROMPTS)
    options = {"strategy": ContrastiveSearch(), "max_new_tokens": 12, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    expected = decoding.generate(model, **inputs, **options)
    output, _ = drafted(model, expected.sequences, inputs, **options)
    for scores, sought in zip(output.scores, expected.scores, strict=True):
        torch.testing.assert_close(scores, sought, atol=1e-4, rtol=1e-3)  # float32, sums in another order
