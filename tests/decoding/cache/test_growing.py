"""The growing cache against the concatenating one."""

from __future__ import annotations

import copy

import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from tiny_models import tiny_model
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from decoding.cache.growing import BLOCK, GrowingLayer, grow_in_place

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.integers(1, BLOCK)),
        st.tuples(st.just("crop"), st.integers(1, 300)),
        st.tuples(st.just("reorder"), st.permutations([0, 1, 2])),
        st.tuples(st.just("copy"), st.none()),
        st.tuples(st.just("reset"), st.none()),
    ),
    max_size=12,
)


# In transformers 5.17 a reset layer keeps its length, and its content as zeros.
RESETS = Version(transformers.__version__) >= Version("5.18")


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.integers(0, 2**16))
def test_any_sequence_of_operations_leaves_the_content_of_a_dynamic_layer(operations: list, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    growing, plain = GrowingLayer(), DynamicLayer()
    for name, argument in operations:
        if name == "update":
            keys, values = torch.randn(2, 3, 2, argument, 4, generator=generator)
            for seen, expected in zip(growing.update(keys, values), plain.update(keys, values), strict=True):
                assert torch.equal(seen, expected)
        elif name == "crop":
            removed = min(argument, plain.get_seq_length())
            growing.crop(-removed)
            plain.crop(-removed)
        elif name == "reorder":
            growing.reorder_cache(torch.tensor(argument))
            plain.reorder_cache(torch.tensor(argument))
        elif name == "copy" or not RESETS:
            growing = copy.deepcopy(growing)
        else:
            growing.reset()
            plain.reset()
        assert growing.get_seq_length() == plain.get_seq_length()
        if plain.get_seq_length():
            assert torch.equal(growing.keys, plain.keys)
            assert torch.equal(growing.values, plain.values)


def test_appending_moves_nothing() -> None:
    layer = GrowingLayer()
    layer.update(torch.randn(1, 2, 10, 4), torch.randn(1, 2, 10, 4))
    place = layer.keys.data_ptr()
    for _ in range(BLOCK):
        layer.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
        assert layer.keys.data_ptr() == place
    layer.crop(-100)
    layer.update(torch.randn(1, 2, 50, 4), torch.randn(1, 2, 50, 4))
    assert layer.keys.data_ptr() == place


def test_spare_room_is_bounded() -> None:
    layer = GrowingLayer()
    layer.update(torch.zeros(1, 1, 10_000, 1), torch.zeros(1, 1, 10_000, 1))
    assert layer._keys.shape[2] <= 10_000 * 17 / 16 + BLOCK


def test_a_cache_made_in_inference_mode_goes_on_outside_it() -> None:
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert layer.get_seq_length() == 4


def test_gradients_flow_where_they_are_wanted() -> None:
    layer = GrowingLayer()
    first = torch.randn(1, 1, 2, 2, requires_grad=True)
    layer.update(first, first)
    keys, _ = layer.update(torch.randn(1, 1, 1, 2, requires_grad=True), torch.randn(1, 1, 1, 2, requires_grad=True))
    keys.sum().backward()
    assert first.grad is not None


def test_only_plain_layers_are_replaced() -> None:
    cache = DynamicCache(config=tiny_model("gemma2").config)
    cache.layers.append(StaticLayer(max_cache_len=4))
    grow_in_place(cache)
    assert [type(layer) for layer in cache.layers] == [
        DynamicSlidingWindowLayer, GrowingLayer, DynamicSlidingWindowLayer, StaticLayer,
    ]  # fmt: skip


def test_a_cache_that_makes_its_layers_as_it_goes_makes_growing_ones() -> None:
    cache = DynamicCache()
    grow_in_place(cache)
    cache.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0)
    assert type(cache.layers[0]) is GrowingLayer
