"""One memo serves every check of a model."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from decoding.models.memo import PerModelMemo, model_cache_key


def test_a_value_is_computed_once_for_each_model_and_key() -> None:
    memo = PerModelMemo[int]()
    computed: list[tuple[nn.Module, str]] = []
    models = nn.Linear(1, 1), nn.Linear(1, 1)
    for model in (*models, *models):
        for key in ("a", "b", "a"):
            memo.get(model, key, lambda model=model, key=key: computed.append((model, key)) or 0)  # type: ignore[misc]
    assert computed == [(model, key) for model in models for key in ("a", "b")]


def test_threads_wait_for_the_one_that_computes() -> None:
    memo, model, computed = PerModelMemo[object](), nn.Linear(1, 1), []
    barrier = threading.Barrier(4)

    def compute() -> object:
        time.sleep(0.05)
        computed.append(object())
        return computed[-1]

    def ask(_number: int) -> object:
        barrier.wait()
        return memo.get(model, "key", compute)

    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(ask, range(4)))
    assert len(computed) == 1
    assert values == computed * 4


def test_other_models_do_not_wait() -> None:
    memo, model, other = PerModelMemo[int](), nn.Linear(1, 1), nn.Linear(1, 1)
    with ThreadPoolExecutor(1) as pool:

        def compute() -> int:
            return pool.submit(memo.get, other, "key", lambda: 1).result(timeout=10) + 1

        assert memo.get(model, "key", compute) == 2


def test_a_computation_may_ask_for_another_key_of_its_model() -> None:
    memo, model = PerModelMemo[int](), nn.Linear(1, 1)
    assert memo.get(model, "a", lambda: 1 + memo.get(model, "b", lambda: 1)) == 2
    assert memo.get(model, "b", lambda: 5) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_is_not_kept(error: type[BaseException]) -> None:
    memo, model = PerModelMemo[int](), nn.Linear(1, 1)

    def fail() -> int:
        raise error

    with pytest.raises(error):
        memo.get(model, "key", fail)
    assert memo.get(model, "key", lambda: 3) == 3


def test_a_value_that_is_not_final_is_computed_again() -> None:
    memo, model = PerModelMemo[int](), nn.Linear(1, 1)
    assert [memo.get(model, "key", lambda value=value: value, lambda value: value > 1) for value in (0, 1, 2, 3)] == [
        0, 1, 2, 2,
    ]  # fmt: skip


def test_obsolete_keys_are_forgotten() -> None:
    memo, model = PerModelMemo[int](), nn.Linear(1, 1)
    for number in range(3):
        memo.get(model, number, lambda number=number: number)  # type: ignore[misc]
    memo.discard(model, lambda number: number < 2)
    assert [memo.get(model, number, lambda: 7) for number in range(3)] == [7, 7, 2]


def test_values_die_with_their_model() -> None:
    memo, model = PerModelMemo[Any](), nn.Linear(1, 1)
    value = memo.get(model, "key", lambda: nn.Linear(1, 1))
    dead = weakref.ref(model), weakref.ref(value)
    del model, value
    gc.collect()
    assert [reference() for reference in dead] == [None, None]


def test_the_key_of_a_model_follows_its_settings() -> None:
    model = tiny_model("llama")
    keys = [model_cache_key(model)]
    model.set_attn_implementation("eager")
    keys.append(model_cache_key(model))
    model.to(torch.bfloat16)
    keys.append(model_cache_key(model))
    model.train()
    keys.append(model_cache_key(model))
    assert len(set(keys)) == 4
    model.eval()
    assert model_cache_key(model) == keys[2]
