"""``compile=True`` with drafts against the same call without either: passes are recorded on a CPU, and replayed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recorded_graph import RecordedGraph
from scripted_drafts import drafted
from tiny_models import left_padded, random_prompt
from tiny_models import tiny_model as new_model

import decoding
from decoding import (
    LOL,
    AdaptiveContrastiveSearch,
    ContrastiveDecoding,
    ContrastiveSearch,
    OptionError,
)
from decoding.models.early_exit import cut_to_layers
from decoding.strategies.model_logits import ModelLogits
from decoding.stream import cuda_graph_steps, static_layout

NEW, DRAFTS = 8, 3
INPUTS = left_padded([random_prompt(4, 1), random_prompt(9, 2), random_prompt(2, 3)])
tiny_model = functools.cache(new_model)
STRATEGIES = {
    "greedy": lambda name: ModelLogits(),
    "contrastive decoding": lambda name: ContrastiveDecoding(tiny_model(name, 7)),
    "lol": lambda name: LOL(tiny_model(name, 7), [1], guidance=[5, 6]),
    "search": lambda name: ContrastiveSearch(0.6, 4),
    "adaptive search": lambda name: AdaptiveContrastiveSearch(),
}
CASES = [*(("llama", kind) for kind in STRATEGIES), ("gemma2", "search")]  # the latter with windows of 8 tokens


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small buckets, so that a short text crosses several; passes are recorded, and replayed without Python."""
    monkeypatch.setattr(static_layout, "BUCKET", 8)
    monkeypatch.setitem(cuda_graph_steps.GRAPHS, "cpu", RecordedGraph)
    cuda_graph_steps._idle.clear()
    yield
    cuda_graph_steps._idle.clear()


def _plain(model: Any, inputs: Any, **options: Any) -> Any:
    return decoding.generate(model, **inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})


def _shapes(model: Any) -> set[tuple[Any, ...]]:
    """What was captured of a model: the kind of pass and its tokens a row, by bucket."""
    steps = [layout.steps for layout in cuda_graph_steps._idle.get(model, ())]
    assert all(isinstance(step.graph, RecordedGraph) for of_layout in steps for step in of_layout.values())
    return {key[:3] for of_layout in steps for key in of_layout}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_tokens_are_those_without_compile(name: str, kind: str) -> None:
    model, strategy = tiny_model(name), STRATEGIES[kind](name)
    expected = _plain(model, INPUTS, strategy=strategy)
    scripts: list[dict[str, Any]] = [{"wrong": 0.0, "short": 0.0}, {"wrong": 0.2}, {"wrong": 0.2, "seed": 1}]
    for script in scripts[:2] if "search" in kind else scripts[1:]:  # later calls replay what the first has captured
        tokens, proposer = drafted(
            model, expected, INPUTS, strategy=strategy, draft_tokens=DRAFTS, script=script,
            compile=True, max_new_tokens=NEW, do_sample=False,
        )  # fmt: skip
        assert torch.equal(tokens, expected)
        assert any(len(set(taken)) > 1 for taken in proposer.taken) or not script["wrong"]
    k = {"search": 4, "adaptive search": 15}.get(kind)
    # A chain, the candidates of one place, or those of a round with a chain behind one of them.
    sizes = {1, DRAFTS + 1} if k is None else {DRAFTS, k, (DRAFTS + 1) * k + DRAFTS}
    shapes = _shapes(model)
    assert {(kind_of_pass, n) for kind_of_pass, n, _ in shapes} <= {("rows", n) for n in sizes}
    assert ("rows", max(sizes)) in {shape[:2] for shape in shapes}
    assert len({bucket for *_, bucket in shapes}) > 1


def test_whoever_drafts_is_captured_too() -> None:
    model, weak = tiny_model("llama"), tiny_model("llama", 7)
    options = {"strategy": ContrastiveDecoding(weak), "do_sample": True, "seeds": [3, 5, 8]}
    expected = _plain(model, INPUTS, **options)
    for drafts, drafter in (("prompt-lookup", None), ("exit:1", cut_to_layers(model, 1)), ("amateur", weak)):
        cuda_graph_steps._idle.clear()
        asked = {"drafts": drafts, "draft_tokens": DRAFTS, "compile": True}
        assert torch.equal(_plain(model, INPUTS, **options, **asked), expected), drafts
        sizes = {n for _, n, _ in _shapes(drafter or model)}
        # Who drafts reads a draft, or what it has not read of what was accepted: the last draft and the token after it.
        assert sizes <= ({1, 2} if drafter is not None else set()) | {1, DRAFTS + 1}, drafts
        assert drafter is None or 1 in sizes


@pytest.mark.parametrize(("name", "kind"), [("gemma2", "greedy"), ("llama", "search")])
def test_a_returned_cache_is_continued(name: str, kind: str) -> None:
    model, strategy = tiny_model(name), STRATEGIES[kind](name)
    options: dict[str, Any] = {"strategy": strategy, "return_dict_in_generate": True, "output_scores": True}
    expected = _plain(model, INPUTS, **options)
    output, _ = drafted(model, expected.sequences, INPUTS, compile=True, max_new_tokens=NEW, do_sample=False, **options)
    assert torch.equal(output.sequences, expected.sequences)
    for scores, sought in zip(output.scores, expected.scores, strict=True):
        torch.testing.assert_close(scores, sought, atol=1e-4, rtol=1e-3)  # float32, sums in another order
    mask = torch.nn.functional.pad(INPUTS["attention_mask"], (0, NEW), value=1)
    texts = []
    for held in (output, expected):
        assert {type(layer).__name__ for layer in held.past_key_values.layers} <= {
            "GrowingLayer", "DynamicSlidingWindowLayer"
        }  # fmt: skip
        more = {"input_ids": held.sequences, "attention_mask": mask, "past_key_values": held.past_key_values}
        texts.append(_plain(model, more, strategy=strategy, max_new_tokens=4).tolist())
    assert texts[0] == texts[1]


def test_what_cannot_be_captured_is_refused_in_one_line() -> None:
    from tiny_models import LLAMA_LIKE
    from transformers import MixtralConfig, MixtralForCausalLM

    model = tiny_model("llama")
    experts = MixtralForCausalLM(
        MixtralConfig(**LLAMA_LIKE, num_local_experts=4, experts_implementation="eager")
    ).eval()
    for options, words in (
        ({"drafts": "exit:1"}, "draft_tokens=auto .*compile=True .*give that number, such as draft_tokens=4"),
        ({"drafts": "exit:1", "draft_tokens": "auto"}, "draft_tokens=auto.*compile=True"),
        ({"drafts": experts, "draft_tokens": 3}, "compile=True: MixtralForCausalLM's steps cannot be captured"),
    ):
        with pytest.raises(OptionError, match=words) as error:
            _plain(model, INPUTS, strategy=ModelLogits(), compile=True, **options)
        assert "\n" not in str(error.value)
