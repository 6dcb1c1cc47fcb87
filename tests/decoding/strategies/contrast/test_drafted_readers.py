"""Readers that wait, beside drafts: over rounds in which rows accept different numbers of them, no choice changes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from embedded_batches import with_class_attributes
from scripted_drafts import drafted
from tiny_models import left_padded, random_prompt, tiny_model
from torch import Tensor

import decoding
from decoding import LOL, ContrastiveDecoding
from decoding.strategies.contrast import drafted_readers, fused_streams

NEW = 20  # so that a row alone has steps of one plausible token
FEW = 10  # of several rows
PROMPTS = [random_prompt(5, 1), random_prompt(12, 2), random_prompt(3, 3), random_prompt(8, 4)]


def _sharper(name: str, seed: int) -> Any:
    """A random model with wide logits, so that some steps leave one plausible token."""
    model = copy.deepcopy(tiny_model(name, seed))
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(3 * head.weight.detach())
    return model


@functools.cache
def _pair() -> tuple[Any, Any]:
    return _sharper("llama", 0), _sharper("llama", 7)


@pytest.fixture
def pair() -> tuple[Any, Any]:
    return _pair()


STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "logits": lambda weak: ContrastiveDecoding(weak, alpha=0.5, beta=0.8),
    "log-probs": lambda weak: ContrastiveDecoding(weak, form="log_probs", beta=1.0, alpha=0.6),
    "last token": lambda weak: ContrastiveDecoding(weak, amateur_context="last_token", alpha=0.5),
    "lol": lambda weak: LOL(weak, [1], alpha=0.5),
    "lol, guided": lambda weak: LOL(weak, [1], guidance=[9, 40, 17], alpha=0.5),
    "lol, entropy": lambda weak: LOL(weak, [1], fusion="entropy", alpha=0.5),
}


def _eager(strategy: Any) -> Any:
    """The strategy, whose readers never wait."""
    return with_class_attributes(strategy, lazy=False)


@functools.cache
def _undrafted(name: str, rows: int) -> Tensor:
    """The greedy tokens of readers that never wait, without drafts."""
    expert, weak = _pair()
    strategy = _eager(STRATEGIES[name](weak))
    inputs = left_padded(PROMPTS[:rows])
    return decoding.generate(expert, **inputs, strategy=strategy, max_new_tokens=FEW if rows > 1 else NEW)


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Of each pass of a group that had waited, how many tokens each row had been left to read."""
    reads: list[list[int]] = []
    read = drafted_readers._DraftedGroup.catch_up

    def noted(self: Any, *arguments: Any) -> None:
        if any(self.unread):
            reads.append([len(row) for row in self.unread])
        read(self, *arguments)

    monkeypatch.setattr(drafted_readers._DraftedGroup, "catch_up", noted)
    return reads


# Of one row what it is left to read is counted; of several, every way to read.
@pytest.mark.parametrize(
    ("name", "rows"),
    [*((name, 4) for name in STRATEGIES), *((name, 1) for name in ("logits", "last token", "lol, guided"))],
)
def test_tokens_are_those_of_readers_that_never_wait(
    name: str, rows: int, pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expert, weak = pair
    strategy, inputs = STRATEGIES[name](weak), left_padded(PROMPTS[:rows])
    options = {"max_new_tokens": FEW if rows > 1 else NEW, "do_sample": False}
    expected = _undrafted(name, rows)
    reads = _reads(monkeypatch)
    scripts: list[dict[str, float]] = [{"wrong": 0.2}]
    if rows == 1 or name == "logits":
        scripts.append({"wrong": 0.0, "short": 0.6})
    for seed, script in enumerate(scripts):
        tokens, _ = drafted(expert, expected, inputs, strategy=strategy, script={**script, "seed": seed}, **options)
        assert torch.equal(tokens, expected)
    if rows == 1 and not name.startswith("lol"):
        assert max(len(read) and max(read) for read in reads) > 1


def test_rows_are_left_different_numbers_of_tokens(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With α = 1 one token is plausible, always; the amateur reads only as the bound is reached."""
    expert, weak = pair
    for module in (drafted_readers, fused_streams):
        monkeypatch.setattr(module, "MOST_UNREAD", 7)
    strategy, inputs = ContrastiveDecoding(weak, alpha=1.0), left_padded(PROMPTS)
    options = {"max_new_tokens": NEW, "do_sample": False}
    expected = decoding.generate(expert, **inputs, strategy=_eager(strategy), **options)
    reads = _reads(monkeypatch)
    for seed in range(3):
        tokens, _ = drafted(expert, expected, inputs, strategy=strategy, script={"wrong": 0.2, "seed": seed}, **options)
        assert torch.equal(tokens, expected)
    assert reads
    assert all(max(read) >= 7 for read in reads)
    assert any(len(set(read)) > 1 for read in reads)


def test_drawn_tokens_are_the_same(pair: tuple[Any, Any]) -> None:
    expert, weak = pair
    inputs = left_padded(PROMPTS)
    for name in ("logits", "last token", "lol, entropy"):
        make = STRATEGIES[name]
        options = {"do_sample": True, "seeds": [3, 5, 8, 13], "max_new_tokens": FEW, "top_p": 0.9, "top_k": 0}
        expected = decoding.generate(expert, **inputs, strategy=_eager(make(weak)), **options)
        tokens, _ = drafted(expert, expected, inputs, strategy=make(weak), **options)
        assert torch.equal(tokens, expected), name


def test_an_amateur_that_waits_and_drafts(pair: tuple[Any, Any]) -> None:
    """It drafts on a stream of its own."""
    expert, weak = pair
    inputs = left_padded(PROMPTS)
    for name in ("logits", "last token", "lol, guided"):
        options = {"strategy": STRATEGIES[name](weak), "max_new_tokens": FEW, "do_sample": False}
        tokens = decoding.generate(expert, **inputs, drafts="amateur", draft_tokens=3, **options)
        assert torch.equal(tokens, _undrafted(name, len(PROMPTS))), name
