"""A LoRA adapter's part of one linear layer, added to the layer's output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from decoding.models.adapters import LoraWeights


def lora(dtype: torch.dtype = torch.float32) -> LoraWeights:
    torch.manual_seed(0)
    down, up = nn.Linear(12, 3, bias=False, dtype=dtype), nn.Linear(3, 10, bias=False, dtype=dtype)
    return LoraWeights(down, up, nn.Identity(), 1.5)


def hooked() -> LoraWeights:
    weights = lora()
    weights.up.register_forward_hook(lambda _layer, _inputs, output: output + 1)
    return weights


def with_bias() -> LoraWeights:
    weights = lora()
    return LoraWeights(weights.down, nn.Linear(3, 10), weights.dropout, weights.scaling)


def dropping_all() -> LoraWeights:
    weights = lora()
    return LoraWeights(weights.down, weights.up, nn.Dropout(1.0).train(), weights.scaling)


def in_evaluation() -> LoraWeights:
    weights = lora()
    return LoraWeights(weights.down, weights.up, nn.Dropout(1.0).eval(), weights.scaling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lora, hooked, with_bias, dropping_all, in_evaluation])
@torch.no_grad()
def test_rows_get_what_the_adapter_says(make: Callable[[], LoraWeights], dtype: torch.dtype) -> None:
    """Whatever stands around its weights, in the layer's dtype, and no row more."""
    weights = make()
    states, output = torch.randn(3, 2, 12, dtype=dtype), torch.randn(3, 2, 10, dtype=dtype)
    expected = output.clone()
    expected[1:] += weights(states[1:]).to(dtype)
    weights.add_to(output[1:], states[1:])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(output[0], expected[0], rtol=0, atol=0)


@torch.no_grad()
def test_outputs_that_lie_turned_round_get_it_too() -> None:
    weights, states = lora(), torch.randn(4, 12)
    output = torch.zeros(10, 4).T
    weights.add_to(output, states)
    torch.testing.assert_close(output, weights(states))
