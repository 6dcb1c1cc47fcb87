"""Calls with drafts that fail in the middle of a round: the same call again is right, and nothing large is kept."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from model_state import changed, state_of
from scripted_drafts import Scripted, drafted
from tiny_models import left_padded, random_prompt, tiny_model
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache

import decoding
from decoding import LOL, ContrastiveDecoding, ContrastiveSearch, ModelError
from decoding.strategies.model_logits import ModelLogits

NEW = 10
INPUTS = left_padded([random_prompt(5, 1), random_prompt(9, 2), random_prompt(3, 3)])
STRATEGIES = ["greedy", "contrastive-decoding", "lol", "contrastive-search"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Expert and amateur, which every call must leave as they were."""
    return tiny_model("llama"), tiny_model("llama", 7)


@pytest.fixture(scope="module")
def without_drafts(pair: tuple[Any, Any]) -> Callable[[str], tuple[Any, Tensor]]:
    """A function that gives a strategy and what it writes; its models are checked, for a call with drafts too."""

    @functools.cache
    def of(name: str) -> tuple[Any, Tensor]:
        model, weak = pair
        strategy = _strategy(name, weak)
        common = {"strategy": strategy, "max_new_tokens": NEW, "do_sample": False}
        expected = decoding.generate(model, **INPUTS, **common)
        drafted(model, expected, INPUTS, **common)
        return strategy, expected

    return of


def _strategy(name: str, weak: Any) -> Any:
    return {
        "greedy": ModelLogits(), "contrastive-decoding": ContrastiveDecoding(weak, alpha=0.5),
        "lol": LOL(weak, [1], guidance=[5, 6]),
        "contrastive-search": ContrastiveSearch(),
    }[name]  # fmt: skip


@contextmanager
def _caches() -> Iterator[weakref.WeakSet[Cache]]:
    """The caches that are made in the block, as far as they live."""
    made: weakref.WeakSet[Cache] = weakref.WeakSet()
    init = Cache.__init__

    def noted(self: Cache, *args: Any, **kwargs: Any) -> None:
        made.add(self)
        init(self, *args, **kwargs)

    with mock.patch.object(Cache, "__init__", noted):
        yield made


class _Failing:
    """Raises at its third call, whatever it is called as."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.calls = error, 0

    def __call__(self, *arguments: Any, **_options: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise self.error("in the middle")
        return None


def _options(place: str, failing: _Failing) -> dict[str, Any]:
    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        failing()
        return scores

    def criterion(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        failing()
        return torch.zeros(len(input_ids), dtype=torch.bool)

    class Streamer:
        put = staticmethod(failing)
        end = staticmethod(lambda: None)

    return {
        "processor": {"logits_processor": LogitsProcessorList([processor])},
        "criterion": {"stopping_criteria": StoppingCriteriaList([criterion])},
        "streamer": {"streamer": Streamer()},
    }.get(place, {})


# A pass fails in the middle of what a session does, so each has its own case. The other places are between its steps:
# of each one session, and contrastive search, which calls processors and the proposer while it reads.
PLACES: list[tuple[str, type[BaseException], list[str]]] = [
    ("a pass", RuntimeError, STRATEGIES),
    ("a pass of the amateur", KeyboardInterrupt, ["contrastive-decoding", "lol"]),
    ("processor", RuntimeError, ["greedy", "contrastive-search"]),
    ("the proposer", KeyboardInterrupt, ["contrastive-decoding", "contrastive-search"]),
    ("criterion", KeyboardInterrupt, ["lol"]),
    ("streamer", KeyboardInterrupt, ["greedy"]),
]


@pytest.mark.parametrize(
    ("name", "place", "error"), [(name, place, error) for place, error, names in PLACES for name in names]
)
def test_the_same_call_again_is_right(
    name: str, place: str, error: type[BaseException], pair: tuple[Any, Any],
    without_drafts: Callable[[str], tuple[Any, Tensor]],
) -> None:  # fmt: skip
    model, weak = pair
    strategy, expected = without_drafts(name)
    common = {"strategy": strategy, "max_new_tokens": NEW, "do_sample": False}
    before = [state_of(reader) for reader in (model, weak)]
    with _caches() as made:
        failing = _Failing(error)
        handle = None
        if place.startswith("a pass"):
            failed = weak if "amateur" in place else model
            handle = failed.get_decoder().register_forward_pre_hook(failing)
        propose = Scripted.propose

        def proposed(self: Scripted, *arguments: Any) -> Any:
            failing()
            return propose(self, *arguments)

        patched = mock.patch.object(Scripted, "propose", proposed if place == "the proposer" else propose)
        with patched, pytest.raises((error, ModelError), match="in the middle"):
            drafted(model, expected, INPUTS, **common, **_options(place, failing))
        assert failing.calls == 3
        if handle is not None:
            handle.remove()
        gc.collect()  # of the traceback's cycles
        assert not made
        assert not changed(before[0], state_of(model))
        assert not changed(before[1], state_of(weak))
        tokens, _ = drafted(model, expected, INPUTS, **common)
        assert torch.equal(tokens, expected)
        assert not made


@pytest.mark.parametrize(
    ("drafts", "names"),
    [("exit:2", STRATEGIES), ("assistant", ["greedy"]), ("amateur", ["contrastive-decoding", "lol"])],
    ids=lambda value: str(value),
)
def test_nothing_is_kept_after_a_call(drafts: str, names: list[str], pair: tuple[Any, Any]) -> None:
    """An exit and an amateur may draft with what a session's readers have read; an assistant reads by itself."""
    (model, weak), third = pair, tiny_model("llama", 3)
    for name in names:
        strategy = _strategy(name, weak)
        with _caches() as made:
            decoding.generate(
                model, **INPUTS, strategy=strategy, drafts=third if drafts == "assistant" else drafts,
                max_new_tokens=6, do_sample=False,
            )  # fmt: skip
            assert not made, name


@pytest.mark.parametrize("drafts", ["exit:2", "model"])
def test_a_failing_pass_of_the_model_that_drafts_frees_it(drafts: str, pair: tuple[Any, Any]) -> None:
    model, weak = pair
    before = state_of(model)
    options: dict[str, Any] = {"drafts": weak if drafts == "model" else drafts, "draft_tokens": 3}
    options |= {"max_new_tokens": NEW, "do_sample": False, "strategy": ContrastiveSearch()}
    expected = decoding.generate(model, **INPUTS, **options)
    failing = _Failing(KeyboardInterrupt)
    first = (weak if drafts == "model" else model).get_decoder().layers[0]
    handle = first.register_forward_pre_hook(failing)
    with _caches() as made:
        with pytest.raises(KeyboardInterrupt, match="in the middle"):
            decoding.generate(model, **INPUTS, **options)
        handle.remove()
        gc.collect()
        assert not made
    assert torch.equal(decoding.generate(model, **INPUTS, **options), expected)
    assert not changed(before, state_of(model))


@pytest.mark.parametrize("name", ["greedy", "contrastive-decoding", "contrastive-search"])
def test_nan_weights_are_named(
    name: str, pair: tuple[Any, Any], without_drafts: Callable[[str], tuple[Any, Tensor]]
) -> None:
    model, weak = pair
    strategy, expected = without_drafts(name)
    common = {"strategy": strategy, "max_new_tokens": NEW, "do_sample": False}
    broken = [model, weak] if hasattr(strategy, "amateur") else [model]
    for reader in broken:
        head = reader.get_output_embeddings().weight
        kept = head.detach().clone()
        with torch.no_grad():
            head.fill_(torch.nan)
        messages = []
        for call in (
            lambda: decoding.generate(model, **INPUTS, **common),
            lambda: drafted(model, expected, INPUTS, **common),
            lambda: decoding.generate(model, **INPUTS, **common, drafts="exit:2"),
        ):
            with pytest.raises(ModelError, match="NaN") as error:
                call()
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        with torch.no_grad():
            head.copy_(kept)
        assert torch.equal(drafted(model, expected, INPUTS, **common)[0], expected)
