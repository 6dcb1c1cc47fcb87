"""Threads that generate with one strategy and one model at once: each gets what it gets alone."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from tiny_models import random_ids, tiny_model
from tiny_strategies import ADAPTER, EXAMPLES, HOLDING, adapted, shared_amateur
from torch import Tensor

import decoding

THREADS, CALLS, NEW = 3, 2, 3


def _model(with_adapter: bool) -> Any:
    """A model that nobody has looked at."""
    model = tiny_model("llama")
    if not with_adapter:
        return model
    torch.manual_seed(1)
    return adapted(model)


_known = functools.cache(_model)  # the same, which says what each thread should get


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, "facade") for name in HOLDING), ("contrastive-search", "processor"), (ADAPTER, "processor")],
)
def test_threads_do_not_see_each_other(name: str, way: str) -> None:
    known, new = _known(name == ADAPTER), _model(name == ADAPTER)
    shared_amateur.cache_clear()
    strategy = EXAMPLES[name]()
    prompts = [random_ids(1 + thread % 2, 4 + thread, seed=thread) for thread in range(THREADS)]

    def made(model: Any, ids: Tensor) -> list[list[int]]:
        if way == "facade":
            return decoding.generate(model, ids, strategy=strategy, max_new_tokens=NEW).tolist()
        processor = strategy.logits_processor(model, attention_mask=torch.ones_like(ids))
        return model.generate(ids, logits_processor=[processor], max_new_tokens=NEW, do_sample=False).tolist()

    expected = [made(known, ids) for ids in prompts]
    found: list[list[Any]] = [[] for _ in prompts]
    together = threading.Barrier(THREADS)

    def work(thread: int) -> None:
        together.wait()
        for _ in range(CALLS):  # the first of which meets a model that nobody has looked at
            try:
                found[thread].append(made(new, prompts[thread]))
            except Exception as error:
                found[thread].append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert found == [[answer] * CALLS for answer in expected]
    hooks = [hook for module in new.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert not hooks
