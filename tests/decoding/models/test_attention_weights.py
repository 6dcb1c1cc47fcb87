"""The token that each head attends to most, against the weights of one pass over the whole text."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_ids, tiny_model

from decoding import ModelError, open_stream
from decoding.models.attention_weights import most_attended
from decoding.transformers_private import attention_implementation

TOKENS, NEW = 14, 5


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma2", "cohere", "gpt2", "opt", "bloom"])
def test_places_are_those_of_the_largest_weights(name: str) -> None:
    model = tiny_model(name)
    before = attention_implementation(model)
    ids = random_ids(2, TOKENS + NEW, seed=3)
    stream = open_stream(model, input_ids=ids[:, :TOKENS])
    with most_attended(model) as places:
        stream.extend(ids[:, TOKENS:])
    assert attention_implementation(model) == before
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    assert [len(layer) for layer in places] == [1] * len(weights)
    for (found,), wanted in zip(places, weights, strict=True):
        most = wanted[..., -NEW:, :].argmax(-1)
        assert torch.equal(TOKENS + NEW - 1 - found, most)
        assert most.unique().numel() > 2  # heads of a random model differ


def test_the_model_is_as_before_after_a_failure() -> None:
    model = tiny_model("llama")
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    seen = []

    def fail() -> None:
        with most_attended(model):
            seen.append(attention_implementation(model))
            raise RuntimeError("the needle is lost")

    with pytest.raises(RuntimeError, match="the needle is lost"):
        fail()
    assert seen == ["eager"]
    assert attention_implementation(model) == "sdpa"
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


def test_a_model_without_attention_has_no_places() -> None:
    model = tiny_model("mamba")
    with most_attended(model) as places, torch.no_grad():
        model(input_ids=random_ids(1, 4))
    assert places == [[], [], []]
    with pytest.raises(ModelError, match="is an encoder-decoder"), most_attended(tiny_model("t5")):
        pass
