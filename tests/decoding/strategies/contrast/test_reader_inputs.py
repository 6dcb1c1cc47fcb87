"""Strategies of other inputs than text: what every kind of them refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_models import random_ids, tiny_model

import decoding
from decoding import (
    AudioContrast,
    ImageContrast,
    InputError,
    Inputs,
    ModelError,
    OptionError,
    SourceContrast,
    Strategy,
)


@pytest.mark.parametrize(
    ("strategy", "error", "message"),
    [
        (ImageContrast(), InputError, "the prompt has no image"),
        (AudioContrast(), InputError, "the prompt has no sound"),
        (SourceContrast([5]), ModelError, "is decoder-only: source-contrast replaces the text of an encoder"),
    ],
    ids=["image", "audio", "source"],
)
def test_a_model_of_text_is_refused(strategy: Strategy, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        decoding.generate(tiny_model("llama"), random_ids(1, 5), strategy=strategy, max_new_tokens=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageContrast(noise=5, blank=True), "each is a worse image of its own"),
        (lambda: ImageContrast(noise=1001), "noise=1001"),
        (lambda: ImageContrast(prompt=""), "prompt is empty"),
        (lambda: AudioContrast("hum"), "negatives='hum': must be one or several of noise, silence, shift"),
        (lambda: AudioContrast(temperature=0.0), "temperature=0.0"),
        (lambda: SourceContrast(None), "neither is given"),
        (lambda: Inputs(), "nothing is given"),
    ],
)
def test_parameters_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()
