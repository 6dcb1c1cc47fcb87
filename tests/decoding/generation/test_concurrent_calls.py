"""Calls in several threads on one model: no thread's hooks see, or break, another thread's forward pass."""

from __future__ import annotations

import contextlib
import contextvars
import threading

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny_models import BUILDERS
from torch import nn

import decoding
from decoding.models.adapters import BASE
from decoding.models.hooks import collect_inputs, recorded_calls
from decoding.models.mixed_rows import MixedRows


def in_a_thread(call):
    """Return value of ``call`` in another thread."""
    made = []
    thread = threading.Thread(target=lambda: made.append(call()))
    thread.start()
    thread.join()
    return made[0]


def capturing(layer):
    stack = contextlib.ExitStack()
    stack.enter_context(collect_inputs([layer]))
    return stack.close


def recording(layer):
    stack = contextlib.ExitStack()
    stack.enter_context(recorded_calls(layer))
    return stack.close


def mixing(layer):
    context, stack = contextvars.copy_context(), contextlib.ExitStack()
    context.run(stack.enter_context, MixedRows(nn.Sequential(layer), [BASE, "amateur"]).activated())
    return lambda: context.run(stack.close)


@pytest.mark.parametrize("hang", [capturing, recording, mixing])
def test_a_hook_that_another_thread_takes_off_does_not_break_a_forward(hang):
    """Torch lists a module's hooks, then looks up for each one whether it is given keywords: too late for this one."""
    layer = nn.Sequential(nn.Linear(4, 4))
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["0"]), layer, adapter_name="amateur")
    take_off = []
    first = layer[0].register_forward_pre_hook(lambda *_: take_off[0]())
    take_off.append(in_a_thread(lambda: hang(layer[0])))
    hooks = len(layer[0]._forward_pre_hooks)
    states = torch.randn(2, 4)
    assert layer(states).shape == (2, 4)
    assert len(layer[0]._forward_pre_hooks) == hooks - 1
    first.remove()


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_each_thread_gets_the_tokens_of_its_own_call(name):
    model = BUILDERS[name]().eval()
    strategies = [decoding.ContrastiveSearch(), decoding.ContrastiveSearch(0.3, 3)]
    if name == "llama":
        strategies += [decoding.DoLa(layers=[0, 1, 2]), decoding.DoLa(layers=[1])]
    ids = [torch.randint(3, 100, (1 + i % 2, 6 + i), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    calls = [(strategy, ids[i], {"max_new_tokens": 8, "eos_token_id": None}) for i, strategy in enumerate(strategies)]
    alone = [decoding.generate(model, tokens, strategy=how, **options) for how, tokens, options in calls]
    together: dict[int, list[torch.Tensor]] = {i: [] for i in range(len(calls))}
    start = threading.Barrier(len(calls))

    def work(i):
        how, tokens, options = calls[i]
        start.wait()
        for _ in range(3):
            together[i].append(decoding.generate(model, tokens, strategy=how, **options))

    threads = [threading.Thread(target=work, args=(i,)) for i in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        assert len(together[i]) == 3
        assert all(torch.equal(tokens, expected) for tokens in together[i])


def test_threads_may_share_a_strategy():
    model, strategy = BUILDERS["llama"]().eval(), decoding.ContrastiveSearch(0.6, 4)
    prompts = [torch.randint(3, 100, (1, 5 + i), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    expected = [decoding.generate(model, ids, strategy=strategy, max_new_tokens=10).tolist() for ids in prompts]
    given: dict[int, list[list[int]]] = {}

    def run(i: int):
        given[i] = decoding.generate(model, prompts[i], strategy=strategy, max_new_tokens=10).tolist()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [given[i] for i in range(4)] == expected
