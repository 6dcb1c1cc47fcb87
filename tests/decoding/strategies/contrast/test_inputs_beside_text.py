"""Inputs beside the text (images, sound): no reader of a contrast is silently without them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

import decoding
from decoding import LOL, ContextAware, ContrastiveDecoding, ContrastiveSearch, DoLa, InputError, Prompt, Strategy
from decoding.stream.prepare import prepare_inputs
from decoding.tools.architectures.images import prompts_with_images
from decoding.tools.architectures.other_inputs import tiny_other_inputs

# The image itself, or what transformers has encoded it to.
BLIND = r"(pixel_values|mm_encoder_outputs \(image\)): the expert alone would get it"

tiny = functools.cache(tiny_other_inputs)
IMAGES = ["llava", "qwen2_vl"]
AMATEURS: dict[str, Callable[[str], Strategy]] = {
    "context": lambda name: ContextAware([7, 8, 9]),
    "a model of its own": lambda name: ContrastiveDecoding(tiny_other_inputs(name, seed=1)),
    "prompt": lambda name: ContrastiveDecoding(Prompt([5, 6])),
    "LOL": lambda name: LOL(Prompt([5, 6]), [1]),
}


@functools.cache
def image_prompt(name: str) -> dict[str, Any]:
    make = prompts_with_images(tiny(name))
    assert make is not None
    prompt = make(0)[0]
    return {"input_ids": torch.tensor([prompt.text]), **prompt.other_inputs}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("readers", AMATEURS)
def test_where_the_image_is_not_known_as_it_was_given_other_readers_are_refused(name: str, readers: str) -> None:
    """A token loop of one's own that hands on what ``generate`` has prepared: the image is encoded already."""
    inputs, strategy = image_prompt(name), AMATEURS[readers](name)
    ids, model_kwargs, config = prepare_inputs(tiny(name), **inputs)
    with pytest.raises(InputError, match=BLIND):
        strategy.session(tiny(name), ids, model_kwargs, config)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("strategy", [ContrastiveSearch(), DoLa([1])], ids=["contrastive search", "DoLa"])
def test_a_strategy_without_other_readers_sees_the_image(name: str, strategy: Strategy) -> None:
    inputs = image_prompt(name)
    tokens = decoding.generate(tiny(name), **inputs, strategy=strategy, max_new_tokens=8)
    other = dict(inputs, pixel_values=-inputs["pixel_values"])
    assert not torch.equal(tokens, decoding.generate(tiny(name), **other, strategy=strategy, max_new_tokens=8))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("readers", AMATEURS)
def test_text_alone_is_read_by_every_reader(name: str, readers: str) -> None:
    ids = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])
    tokens = decoding.generate(tiny(name), ids, strategy=AMATEURS[readers](name), max_new_tokens=3)
    assert tokens.shape == (2, 7)


def test_other_inputs_that_one_reader_would_get_are_refused_by_name() -> None:
    """Any input of the model counts, not only those that this library has heard of."""
    model = tiny_model("gpt2")
    ids = torch.tensor([[11, 12]])
    with pytest.raises(InputError, match="token_type_ids: the expert alone would get it"):
        decoding.generate(model, ids, token_type_ids=torch.ones_like(ids), strategy=ContextAware([5]), max_new_tokens=2)
