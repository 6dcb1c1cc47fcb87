"""Calls with drafts, drawn by hypothesis: each is held to the same call without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from scripted_drafts import drafted
from tiny_models import left_padded, random_prompt, tiny_model
from torch import Tensor

import decoding
from decoding import FSD, LOL, ContextAware, ContrastiveDecoding, ContrastiveSearch, DoLa, Prompt
from decoding.strategies.model_logits import ModelLogits

__all__ = ["fuzz_drafts"]

MODELS = ["llama", "qwen2", "mistral-sliding", "gemma2", "cohere", "gpt2", "opt"]  # windows of 8 tokens among them


@functools.cache
def _model(name: str, seed: int = 0) -> Any:
    return tiny_model(name, seed)


STRATEGIES: dict[str, Callable[[], Any]] = {
    "greedy": ModelLogits,
    "logits": lambda: ContrastiveDecoding(_model("llama", 7), alpha=0.02),
    "log-probs": lambda: ContrastiveDecoding(_model("llama", 7), form="log_probs", alpha=0.3),
    "waiting": lambda: ContrastiveDecoding(_model("llama", 7), alpha=0.9),
    "last token": lambda: ContrastiveDecoding(_model("llama", 7), amateur_context="last_token"),
    "prompt": lambda: ContrastiveDecoding(Prompt([5, 6])),
    "context-aware": lambda: ContextAware([7, 8, 9, 10]),
    "dola": lambda: DoLa([1, 2]),
    "dola-high": lambda: DoLa("high"),
    "lol": lambda: LOL(_model("llama", 7), [1], guidance=[5, 6]),
    "lol-entropy": lambda: LOL(_model("llama", 7), [0.5], fusion="entropy"),
    "fsd": FSD,
    "fsd-4": lambda: FSD(0.5, 5, n=4),
    "search": ContrastiveSearch,
    "window": lambda: ContrastiveSearch(0.5, 6, max_history=5),
    "one candidate": lambda: ContrastiveSearch(0.6, 1),
}
WITH_AMATEUR = [name for name, make in STRATEGIES.items() if hasattr(make(), "amateur")]
# Who proposes, by the share of all calls: drawn, it would depend on what else has been imported, from which hypothesis
# takes constants.
PROPOSERS = {"script": 3, "prompt-lookup": 1, "exit:1": 1, "exit:2": 1, "model": 1, "amateur": 1}
RETURNED = ("output_scores", "output_logits", "output_hidden_states")


@st.composite
def _calls(draw: st.DrawFn, drafts: str) -> dict[str, Any]:
    """A call in plain data."""
    strategy = draw(st.sampled_from(WITH_AMATEUR if drafts == "amateur" else list(STRATEGIES)))
    rows = draw(st.integers(1, 4))
    options: dict[str, Any] = {"max_new_tokens": draw(st.sampled_from([1, 2, 5, 17, 30])), "do_sample": False}
    if draw(st.booleans()):
        options |= {"do_sample": True, "top_k": draw(st.sampled_from([0, 0, 5, 20]))}
        options["seeds"] = [draw(st.integers(0, 999)) for _ in range(rows)]
        options |= draw(st.sampled_from([{}, {"top_p": 0.8}, {"temperature": 0.7}, {"min_p": 0.1}]))
    processors = [
        {}, {}, {}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 1},
        {"bad_words_ids": [[40], [50, 60]]}, {"suppress_tokens": [86, 27]}, {"forced_eos_token_id": 9},
    ]  # fmt: skip
    options |= draw(st.sampled_from(processors))
    if draw(st.booleans()):
        options |= {"return_dict_in_generate": True, **{name: draw(st.booleans()) for name in RETURNED}}
    return {
        "model": draw(st.sampled_from(MODELS)),
        "strategy": strategy,
        "prompts": [(draw(st.integers(1, 14)), draw(st.integers(0, 9999))) for _ in range(rows)],
        "options": options,
        # Of the tokens that the rows have without an end token, those at these places are end tokens.
        "ends": draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, 29)), max_size=3)),
        "pad": draw(st.sampled_from([0, 5])),
        "drafts": drafts,
        "draft_tokens": draw(st.sampled_from([1, 3, 7, "auto"])),
        "script": {
            "wrong": draw(st.sampled_from([0.0, 0.1, 0.4, 1.0])), "short": draw(st.sampled_from([0.0, 0.5])),
            "seed": draw(st.integers(0, 99)),
        },
    }  # fmt: skip


def fuzz_drafts(count: int, seed: int) -> None:
    """Make about ``count`` calls, at least one with each proposer.

    Raises:
        AssertionError: of the simplest call found whose tokens, values or cache are not those without drafts.
    """
    for drafts, share in PROPOSERS.items():
        hold = hypothesis.given(_calls(drafts))(_hold)
        most = max(1, count * share // sum(PROPOSERS.values()))
        health_checks = list(hypothesis.HealthCheck)
        quietly = hypothesis.settings(
            max_examples=most, deadline=None, database=None, suppress_health_check=health_checks
        )
        hypothesis.seed(seed)(quietly(hold))()


def _hold(call: dict[str, Any]) -> None:
    model, inputs = _model(call["model"]), left_padded([random_prompt(*prompt) for prompt in call["prompts"]])
    options = {**call["options"], "strategy": STRATEGIES[call["strategy"]]()}
    width = inputs["input_ids"].shape[1]
    if call["ends"]:
        free = _sequences(decoding.generate(model, **inputs, **options))[:, width:]
        options["eos_token_id"] = [int(free[row, place % free.shape[1]]) for row, place in call["ends"]]
        options["pad_token_id"] = call["pad"]
    expected = decoding.generate(model, **inputs, **options)
    if call["drafts"] == "script":
        output, _ = drafted(
            model, _sequences(expected), inputs, draft_tokens=call["draft_tokens"], script=call["script"], **options
        )
    else:
        drafts = _model("llama", 3) if call["drafts"] == "model" else call["drafts"]
        output = decoding.generate(model, **inputs, drafts=drafts, draft_tokens=call["draft_tokens"], **options)
    assert torch.equal(_sequences(output), _sequences(expected))
    if not isinstance(expected, Tensor):
        _hold_values(output, expected, width, inputs["attention_mask"], set(options.get("eos_token_id") or ()))


def _sequences(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.sequences


def _hold_values(output: Any, expected: Any, width: int, mask: Tensor, ends: set[int]) -> None:
    """Hold scores, logits, hidden states and the cache to those without drafts, as far as rows have not ended."""
    new = expected.sequences[:, width:].tolist()
    lengths = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in new]
    for name in ("scores", "logits", "hidden_states"):
        steps, sought = getattr(output, name), getattr(expected, name)
        assert (steps is None) == (sought is None)
        for step, (values, sought_values) in enumerate(zip(steps or (), sought or (), strict=True)):
            going = [row for row, length in enumerate(lengths) if step <= length]
            pairs = [(values, sought_values)] if name != "hidden_states" else zip(values, sought_values, strict=True)
            for value, sought_value in pairs:
                assert value.shape == sought_value.shape
                own, other = value[going], sought_value[going]
                _close(own[:, -1] if own.dim() == 3 else own, other[:, -1] if other.dim() == 3 else other)
    assert output.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
    for layer, sought_layer in zip(output.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert layer.keys.shape == sought_layer.keys.shape
        gone = expected.past_key_values.get_seq_length() - layer.keys.shape[2]  # have left the window
        for row, length in enumerate(lengths):
            kept = slice(max(int((mask[row] == 0).sum()) - gone, 0), max(width + length - gone, 0))
            for entries in ("keys", "values"):
                _close(getattr(layer, entries)[row, :, kept], getattr(sought_layer, entries)[row, :, kept])


def _close(values: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(values, expected, atol=2e-3, rtol=1e-3)  # float32, sums in another order
