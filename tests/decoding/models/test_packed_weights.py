"""Copies of weights for products of a few rows: when they are made, that they are never outdated, and freed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_ids, tiny_model
from torch import Tensor, nn

from decoding import ContrastiveSearch, DoLa, generate
from decoding.models import linear_forms, packed_weights, small_batch_linear
from decoding.models.linear_forms import ENVIRONMENT_VARIABLE, FORMS, is_usable
from decoding.models.packed_weights import available_memory, discard_outdated, has_copy, has_room_for_copies
from decoding.models.small_batch_linear import SmallBatchLinear, measured_forms

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not is_usable("packed") or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"),
    reason="this build of torch has no oneDNN",
)


@pytest.fixture(autouse=True)
def _without_autograd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a C compiler, where copies are what is left."""
    monkeypatch.setattr(small_batch_linear, "_measured", {})
    monkeypatch.setattr(linear_forms, "why_not_compiled", lambda: "no C compiler")
    with torch.no_grad():
        yield


@pytest.fixture
def copies_are_quickest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which copies take half of the time of the other forms, and weights of any size are worth them."""
    seconds = {product: 0.5 if name == "packed" else 1.0 for name, product in FORMS.items()}

    def clock(product: Any, states: Tensor, layer: nn.Linear) -> float:
        product(states, layer)
        return seconds[product]

    monkeypatch.setattr(small_batch_linear, "_seconds", clock)
    monkeypatch.setattr(packed_weights, "LEAST", 0)


def _pass(layers: list[nn.Linear], states: Tensor) -> Tensor:
    with SmallBatchLinear(layers).quickest(len(states), CPU):
        return layers[0](states)


@pytest.mark.usefixtures("copies_are_quickest")
def test_copies_are_made_once_they_pay() -> None:
    layers, states = [nn.Linear(16, 24) for _ in range(3)], torch.randn(4, 16)
    for _ in range(small_batch_linear.PATIENCE):
        _pass(layers, states)
    assert not any(map(has_copy, layers))
    torch.testing.assert_close(_pass(layers, states), layers[0](states), rtol=1e-5, atol=1e-5)
    assert all(map(has_copy, layers))
    assert measured_forms(nn.Sequential(*layers), 4) == {"packed": 3}


@pytest.mark.usefixtures("copies_are_quickest")
@pytest.mark.parametrize(
    "setting",
    [
        lambda patch: patch.setenv(ENVIRONMENT_VARIABLE, "unpacked"),
        lambda patch: patch.setattr(packed_weights, "available_memory", lambda: 3 * 16 * 24 * 4 * 3),
        lambda patch: patch.setattr(packed_weights, "LEAST", 3 * 16 * 24 * 4 + 1),
        lambda patch: patch.setattr(packed_weights, "_copied", _no_memory),
    ],
    ids=["switched off", "no room", "small", "refused"],
)
def test_no_copies_are_made(setting: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch)
    layers, states = [nn.Linear(16, 24, bias=False) for _ in range(3)], torch.randn(4, 16)
    for _ in range(small_batch_linear.PATIENCE + 2):
        _pass(layers, states)
    assert not any(map(has_copy, layers))
    assert measured_forms(nn.Sequential(*layers), 4) == {"linear": 3}


def _no_memory(_: nn.Linear) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.usefixtures("copies_are_quickest")
def test_copies_that_lose_are_freed_and_those_of_other_numbers_of_rows_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = small_batch_linear._seconds

    def clock(product: Any, states: Tensor, layer: nn.Linear) -> float:
        return quick(product, states, layer) * (3.0 if product is FORMS["packed"] and len(states) == 2 else 1.0)

    monkeypatch.setattr(small_batch_linear, "_seconds", clock)
    model = nn.Sequential(nn.Linear(16, 24))
    assert measured_forms(model, 2) == {"linear": 1}
    assert not has_copy(model[0])
    assert measured_forms(model, 4) == {"packed": 1}
    monkeypatch.setattr(small_batch_linear, "_measured", {})
    assert measured_forms(model, 2) == {"linear": 1}
    assert has_copy(model[0])


def _in_data(layer: nn.Linear) -> None:
    layer.weight.data += 1.0  # neither the tensor nor its version tells


def _replaced(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight + 1.0)


def _stepped(layer: nn.Linear) -> None:
    with torch.enable_grad():
        optimizer = torch.optim.SGD([layer.weight], lr=1.0)
        (-layer.weight.sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(16, 24), (3, 5)], ids=["even", "odd"])
@pytest.mark.parametrize("change", [_in_data, _replaced, _stepped])
def test_changed_weights_are_seen(
    change: Callable[[nn.Linear], None], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "packed")
    layer, other = nn.Linear(*shape), nn.Linear(*shape)
    states = torch.randn(4, shape[0])
    for one in (layer, other):
        _pass([one], states)
    change(layer)
    discard_outdated(nn.ModuleList([layer, other]))
    assert (has_copy(layer), has_copy(other)) == (False, True)
    torch.testing.assert_close(_pass([layer], states), layer(states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", [ContrastiveSearch(0.6, 4), DoLa([0, 1, 2])], ids=lambda strategy: strategy.name)
def test_a_call_after_training_reads_the_new_weights(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "packed")
    model, other, ids = tiny_model("llama"), tiny_model("llama", seed=1), random_ids(1, 9)
    before = generate(model, ids, strategy=strategy, max_new_tokens=8)
    assert has_copy(model.lm_head)
    assert has_copy(model.model.layers[0].self_attn.q_proj)
    for mine, new in zip(model.parameters(), other.parameters(), strict=True):
        mine.data.copy_(new.data)
    after = generate(model, ids, strategy=strategy, max_new_tokens=8)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "linear")
    assert after.tolist() == generate(other, ids, strategy=strategy, max_new_tokens=8).tolist() != before.tolist()


def test_a_copy_goes_with_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "packed")
    layer = nn.Linear(16, 24)
    _pass([layer], torch.randn(2, 16))
    known = len(packed_weights._copies)
    del layer
    gc.collect()
    assert len(packed_weights._copies) < known


def test_room_is_what_the_machine_and_the_control_groups_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights, "PROC", tmp_path / "proc")
    monkeypatch.setattr(packed_weights, "CGROUPS", tmp_path / "cgroup")
    assert available_memory() == 0  # no such machine
    group = tmp_path / "cgroup" / "outer" / "inner"
    group.mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("1:cpu:/elsewhere\n0::/outer/inner\n")
    assert available_memory() == 4000 * 1024
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1000000\n")
    (group.parent / "memory.current").write_text("600000\n")
    assert available_memory() == 400_000
    monkeypatch.setattr(packed_weights, "LEAST", 0)
    assert has_room_for_copies([nn.Linear(100, 250)])  # of 100,000 bytes, a quarter
    assert not has_room_for_copies([nn.Linear(100, 251)])
    first = tmp_path / "cgroup" / "memory" / "mine"
    first.mkdir(parents=True)
    (first / "memory.limit_in_bytes").write_text("5000\n")
    (first / "memory.usage_in_bytes").write_text("6000\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/mine\n")
    assert available_memory() == 0
