"""How well early exits predict the model's own text."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import tiny_model

from decoding import OptionError
from decoding.capabilities.exit_quality import TOKENS, exit_quality
from decoding.models.probe import probe_inputs


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
def test_the_figures_are_those_of_the_formula(name: str) -> None:
    """Against hidden states that the model itself returns, and its own norm and head."""
    model = tiny_model(name)
    quality = exit_quality(model, [1, 0])
    prompt = probe_inputs(model)["input_ids"]
    text = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, eos_token_id=None, do_sample=False
    )
    with torch.no_grad():
        hidden = model(text, output_hidden_states=True).hidden_states
    head = model.get_output_embeddings()
    for exit_, nats in zip((0, 1), quality.bare, strict=True):
        predicted = head(hidden[exit_])[0, len(prompt[0]) - 1 : -1].double().log_softmax(-1)
        written = text[0, len(prompt[0]) :, None]
        assert nats == pytest.approx(-float(predicted.gather(-1, written).mean()), rel=1e-5)
    assert quality.exits == (0, 1)
    assert quality.chance == math.log(model.config.vocab_size)


def test_an_exit_whose_states_are_too_long_is_noise_without_the_norm() -> None:
    model = tiny_model("llama")
    with torch.no_grad():  # the head is sure of a token, which the last layer takes no heed of
        model.model.embed_tokens.weight *= 1e3
        model.model.layers[-1].mlp.down_proj.weight *= 1e6
    quality = exit_quality(model, [0, 1])
    assert quality.noisy == (0, 1)
    assert max(quality.normed) < min(quality.bare) / 10


def test_exits_that_are_not_there_are_refused() -> None:
    with pytest.raises(OptionError, match="layer 9"):
        exit_quality(tiny_model("llama"), [9])
