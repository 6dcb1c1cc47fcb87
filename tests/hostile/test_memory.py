"""Memory: nothing of a call outlives it, and resident memory does not grow with the number of calls."""

from __future__ import annotations

import gc
import mmap
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from resident_memory import stays_flat
from tiny_models import random_ids, tiny_model
from tiny_strategies import ADAPTER, EXAMPLES, HOLDING, adapted
from transformers.cache_utils import Cache, DynamicCache

import decoding
from decoding import LOL, ContrastiveSearch

NEW_TOKENS = 24
WARM_UP, CALLS = 2, 10
# Calls that leave nothing grow by up to 220 kB, most often by 20. Tensors are counted: one that each call leaves is
# seen, however small. Other memory is seen from 35 kB a call on. (A call's cache has 3 layers x 2 x 2 rows x 2 heads x
# 88 slots x 8 numbers of 4 bytes = 68 kB.)
MEMORY = 350_000


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def with_adapter() -> Any:
    model = adapted(tiny_model("llama"))
    model.disable_adapters()
    model.enable_adapters()
    return model


@pytest.fixture(scope="module")
def texts() -> dict[str, Any]:
    """What calls that do not fail write, by strategy."""
    return {}


WAYS: dict[str, Callable[..., Any]] = {
    "facade": lambda model, ids, strategy, **options: decoding.generate(model, ids, strategy=strategy, **options),
    "custom": lambda model, ids, strategy, **options: model.generate(ids, custom_generate=strategy, **options),
    "processor": lambda model, ids, strategy, **options: model.generate(
        ids, logits_processor=[strategy.logits_processor(model)], **options
    ),
    "compile": lambda model, ids, strategy, **options: decoding.generate(
        model, ids, strategy=strategy, compile=True, **options
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, "facade") for name in HOLDING), *(("lol", way) for way in ("custom", "processor", "compile"))],
)
def test_resident_memory_is_flat(name: str, way: str, model: Any, with_adapter: Any) -> None:
    model = with_adapter if name == ADAPTER else model
    strategy, ids = EXAMPLES[name](), random_ids(2, 64)
    for _ in range(WARM_UP):
        WAYS[way](model, ids, strategy, max_new_tokens=2)

    def calls() -> None:
        for call in range(CALLS):
            WAYS[way](model, ids[:, call % 8 :], strategy, max_new_tokens=1 + call % 2)

    assert stays_flat(calls, MEMORY)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "leak", [lambda: torch.zeros(1), lambda: _grab(10)], ids=["a tensor of one number", "ten pages of memory"]
)
def test_a_small_leak_of_every_call_is_seen(leak: Callable[[], object], model: Any) -> None:
    left = []

    def calls() -> None:
        for _ in range(CALLS):
            decoding.generate(model, random_ids(2, 6), strategy=ContrastiveSearch(), max_new_tokens=1)
            left.append(leak())

    assert not stays_flat(calls, MEMORY)


def _grab(pages: int) -> mmap.mmap:
    """Take pages from the system: what libc still has in its holes would not show in the resident memory."""
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
    memory[:] = bytes([1]) * len(memory)
    return memory


@pytest.fixture
def born(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Cache]:
    """Caches that are made, as far as they live; nothing is collected but by reference counts."""
    made: weakref.WeakSet[Cache] = weakref.WeakSet()
    init = Cache.__init__

    def noted(self: Cache, *args: Any, **kwargs: Any) -> None:
        made.add(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Cache, "__init__", noted)
    gc.disable()
    yield made
    gc.enable()


# Each kind of cache in a session; where other code holds one, a cache of each way to branch.
@pytest.mark.parametrize(
    ("architecture", "way"),
    [
        *((name, "facade") for name in ("llama", "mistral-sliding", "bloom", "mamba", "t5")),
        *((name, "processor") for name in ("llama", "mistral-sliding", "mamba")),
        *((name, "custom") for name in ("llama", "t5")),
    ],
)
def test_the_cache_dies_with_the_call(architecture: str, way: str, born: weakref.WeakSet[Cache]) -> None:
    model, ids, strategy = tiny_model(architecture), random_ids(2, 6), ContrastiveSearch()
    for _ in range(2):  # the first call looks at the model
        WAYS[way](model, ids, strategy, max_new_tokens=4)
        assert not born


# A processor holds a session of its own between steps. Sessions of one kind end alike, whoever makes them.
@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "processor") for name in EXAMPLES),
        *((name, "facade") for name in HOLDING),
        *((name, "custom") for name in ("contrastive-search", "lol")),
    ],
)
def test_no_strategy_holds_a_cache(
    name: str, way: str, model: Any, with_adapter: Any, born: weakref.WeakSet[Cache]
) -> None:
    model = with_adapter if name == ADAPTER else model
    strategy = EXAMPLES[name]()
    WAYS[way](model, random_ids(2, 6), strategy, max_new_tokens=4)
    assert not born
    assert _hooks(model) == 0


def test_a_cache_that_was_handed_in_is_its_callers_alone(model: Any, born: weakref.WeakSet[Cache]) -> None:
    cache = DynamicCache(config=model.config)
    decoding.generate(model, random_ids(1, 9), strategy=ContrastiveSearch(), past_key_values=cache, max_new_tokens=5)
    assert len(born) == 1
    del cache
    assert not born


# The first pass, where a model is inspected or read; the second, often another reader's; and one of a later step.
@pytest.mark.parametrize(
    ("name", "passes"),
    [*((name, 1) for name in HOLDING), *((name, 3) for name in HOLDING), ("contrastive-search", 0), ("lol", 0)],
)
def test_a_failed_call_leaves_nothing(
    name: str, passes: int, model: Any, with_adapter: Any, born: weakref.WeakSet[Cache], texts: dict[str, Any]
) -> None:
    model = with_adapter if name == ADAPTER else model
    strategy, ids = EXAMPLES[name](), random_ids(2, 6)
    if name not in texts:
        texts[name] = decoding.generate(model, ids, strategy=strategy, max_new_tokens=5).tolist()
    left = [passes]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = model.model.register_forward_pre_hook(fail)
    try:
        # The error is held on to, as by a caller who tries again with less from inside `except`.
        with pytest.raises(torch.OutOfMemoryError, match=r"ran out of memory on 2 rows|on \d+ rows") as held:
            decoding.generate(model, ids, strategy=strategy, max_new_tokens=5)
        assert isinstance(held.value, decoding.ModelError)
        assert not born
    finally:
        handle.remove()
    assert _hooks(model) == 0
    assert decoding.generate(model, ids, strategy=strategy, max_new_tokens=5).tolist() == texts[name]
    assert not born


def test_a_processor_lets_go_when_it_is_told_to(model: Any, born: weakref.WeakSet[Cache]) -> None:
    processor = ContrastiveSearch().logits_processor(model)
    first = model.generate(random_ids(1, 6), logits_processor=[processor], max_new_tokens=4, do_sample=False)
    assert len(born) == 1  # it cannot know that the call has ended
    processor.release()
    assert not born
    again = model.generate(random_ids(1, 6), logits_processor=[processor], max_new_tokens=4, do_sample=False)
    assert again.tolist() == first.tolist()


def test_nothing_keeps_a_model(born: weakref.WeakSet[Cache]) -> None:
    model, amateur = tiny_model("llama"), tiny_model("llama", seed=7)
    decoding.generate(model, random_ids(2, 6), strategy=LOL(amateur, [1], guidance=[5]), max_new_tokens=4, compile=True)
    known = weakref.ref(model), weakref.ref(amateur)
    del model, amateur
    gc.collect()  # modules of torch refer to each other
    assert [reference() for reference in known] == [None, None]
    assert not born


def _hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
