"""Drafts whose states are no numbers: they fail a call where it fails without drafts, and only there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from scripted_drafts import drafted
from tiny_models import VOCAB, left_padded, random_prompt, tiny_model

import decoding
from decoding import LOL, ContrastiveDecoding, ContrastiveSearch, DecodingError
from decoding.drafts.prompt_lookup import PromptLookup
from decoding.drafts.proposer import drafts_of
from decoding.strategies.contrastive_search.speculative import SpeculativeSearch
from decoding.strategies.model_logits import ModelLogits

NEW = 8
PROMPTS = [random_prompt(5, 1), random_prompt(9, 2), random_prompt(3, 3)]
INPUTS = left_padded(PROMPTS)
WIDTH = INPUTS["input_ids"].shape[1]


STRATEGIES = ["greedy", "contrastive-decoding", "lol", "search"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Expert and amateur, which are checked for drafts and captured passes while their weights are numbers."""
    model, weak = tiny_model("llama"), tiny_model("llama", 7)
    for reader in (model, weak):
        drafts = {"drafts": "exit:1", "draft_tokens": 1, "compile": True, "max_new_tokens": 2}
        decoding.generate(reader, **INPUTS, strategy=ModelLogits(), **drafts)
    return model, weak


def _strategy(name: str, weak: Any) -> Any:
    return {
        "greedy": ModelLogits(), "contrastive-decoding": ContrastiveDecoding(weak, alpha=0.5),
        "lol": LOL(weak, [1], guidance=[5, 6]),
        "search": ContrastiveSearch(),
    }[name]  # fmt: skip


@contextmanager
def _without_number(models: Any, token: int) -> Iterator[None]:
    """In this block the models answer NaN once they have read a token, as half precision does after an overflow."""
    weights = [model.get_input_embeddings().weight for model in models]
    kept = [weight[token].detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight[token] = torch.nan
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, row in zip(weights, kept, strict=True):
                weight[token] = row


def _call(name: str, weak: Any, **options: Any) -> dict[str, Any]:
    return {"strategy": _strategy(name, weak), "max_new_tokens": NEW, "do_sample": False, **options}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_wrong_draft_may_give_nan(name: str, pair: tuple[Any, Any]) -> None:
    model, weak = pair
    bad = next(token for token in range(7, VOCAB) if token not in INPUTS["input_ids"])
    options = _call(name, weak, suppress_tokens=[bad])
    expected = decoding.generate(model, **INPUTS, **options)
    for broken in [pair, (weak,)] if hasattr(options["strategy"], "amateur") else [pair]:
        with _without_number(broken, bad):
            script = {"wrong": 0.3, "short": 0.2, "bad": bad}
            for compile in (False, True)[: 1 + (name in ("greedy", "search"))]:
                tokens, _ = drafted(model, expected, INPUTS, script=script, compile=compile, **options)
                assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_chosen_fails_as_without_drafts(name: str, pair: tuple[Any, Any]) -> None:
    model, weak = pair
    rows = {"greedy": [2], "search": [0]}.get(name, [0, 1, 2])  # other rows of a search may have it as a candidate
    options, inputs = _call(name, weak), {key: values[rows] for key, values in INPUTS.items()}
    expected = decoding.generate(model, **inputs, **options)
    bad = next(
        token
        for row in expected[:, WIDTH + 2 :].tolist()
        for token in row
        if token not in expected[:, : WIDTH + 2] and sum(token in other for other in expected.tolist()) == 1
    )
    calls: list[Callable[[], Any]] = [lambda: decoding.generate(model, **inputs, **options)]
    for script in ({"seed": 0, "wrong": 0.2}, {"seed": 1, "wrong": 0.2}):
        calls.append(functools.partial(drafted, model, expected, inputs, script=script, **options))
    messages = []
    for call in calls:
        with _without_number(pair, bad), pytest.raises(DecodingError, match=r"at step \d+ \(row \d\)") as error:
            call()
        messages.append(str(error.value))
    assert len(set(messages)) == 1, messages


def test_a_candidate_behind_a_wrong_draft_may_give_nan(pair: tuple[Any, Any]) -> None:
    """A candidate that is not chosen is drafted, and after it a candidate gives NaN, whether it is drafted or not."""
    model, weak = pair
    options = _call("search", weak, return_dict_in_generate=True, output_scores=True)
    inputs = {"input_ids": torch.tensor([PROMPTS[0]])}
    output = decoding.generate(model, **inputs, **options)
    expected = output.sequences
    candidates = [(scores > -torch.inf).nonzero()[:, 1].tolist() for scores in output.scores]  # of every step
    known = {*expected[0].tolist(), *(token for of_step in candidates for token in of_step)}
    chosen = int(expected[0, len(PROMPTS[0])])
    after = {}
    for token in candidates[0]:
        with torch.no_grad():
            after[token] = model(input_ids=torch.tensor([[*PROMPTS[0], token]])).logits[0, -1].topk(4).indices.tolist()
    draft, bad = next(
        (draft, bad) for draft, found in after.items() for bad in found if draft != chosen and bad not in known
    )
    del options["return_dict_in_generate"], options["output_scores"]

    for drafts in ([draft, bad, 9], [draft, 9]):

        def proposed(self: Any, texts: Any, most: Any, drafts: list[int] = drafts) -> Any:
            return drafts_of([drafts[:n] for n in most], torch.device("cpu"))

        with _without_number(pair, bad), pytest.MonkeyPatch.context() as patch:
            patch.setattr("decoding.drafts.prompt_lookup.PromptLookup.propose", proposed)
            tokens = decoding.generate(model, **inputs, drafts="prompt-lookup", draft_tokens=3, **options)
        assert torch.equal(tokens, expected)


def test_a_chain_read_ahead_may_give_nan(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The round before it is right: its candidates are read again without the chain, and the next round without it."""
    model, weak = pair
    bad = next(token for token in range(7, VOCAB) if token not in INPUTS["input_ids"])
    options = _call("search", weak, suppress_tokens=[bad])
    expected = decoding.generate(model, **INPUTS, **options)
    read_again = []
    by_place = SpeculativeSearch._read_by_place

    def noted(self: Any, *given: Any) -> Any:
        read_again.append(given)
        return by_place(self, *given)

    def right(texts: Any, behind: Any, most: Any) -> list[list[int]]:
        rows = []
        for row, prompt, text, more, n in zip(expected.tolist(), PROMPTS, texts, behind, most, strict=True):
            begin = WIDTH - len(prompt) + len(text) + len(more)
            rows.append(row[begin : begin + n])
        return rows

    def proposed(self: Any, texts: Any, most: Any) -> Any:
        return drafts_of(right(texts, [()] * len(texts), most), torch.device("cpu"))

    def ahead(self: Any, texts: Any, behind: Any, most: Any) -> Any:
        rows = right(texts, behind, most)
        return drafts_of([[*row[:1], *[bad] * len(row[1:])] for row in rows], torch.device("cpu"))

    monkeypatch.setattr(SpeculativeSearch, "_read_by_place", noted)
    monkeypatch.setattr(PromptLookup, "propose", proposed)
    monkeypatch.setattr(PromptLookup, "propose_behind", ahead)
    with _without_number(pair, bad):
        tokens = decoding.generate(model, **INPUTS, drafts="prompt-lookup", draft_tokens=2, **options)
    assert torch.equal(tokens, expected)
    assert read_again


@pytest.mark.parametrize("do_sample", [False, True])
def test_who_drafts_may_give_nan(do_sample: bool, pair: tuple[Any, Any]) -> None:
    """At its own drafts, or after the text: there are fewer drafts then."""
    model, weak = pair
    options = _call("greedy", weak, do_sample=do_sample, drafts=weak, draft_tokens=3)
    expected = decoding.generate(model, **INPUTS, **{**options, "drafts": "none", "do_sample": False})
    for bad in (int(expected[0, WIDTH + 2]), int(INPUTS["input_ids"][1, 0])):
        with _without_number([weak], bad):
            tokens = decoding.generate(model, **INPUTS, **options)
        assert tokens.shape == expected.shape
        assert do_sample or torch.equal(tokens, expected)
