"""How well early exits predict the model's own text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from decoding import ModelError, OptionError
from decoding.capabilities.exit_quality import TOKENS, ExitQuality, exit_quality
from decoding.models.probe import probe_inputs


@torch.no_grad()
def greedy_text(model: Any, prompt: Tensor, never: int | None, tokens: int = TOKENS) -> Tensor:
    """The prompt and its most probable tokens, (1, length), in passes over the whole text."""
    text = prompt
    for _ in range(tokens):
        logits = model(text).logits[:, -1]
        if never is not None:
            logits[:, never] = -torch.inf
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=-1)
    return text


@torch.no_grad()
def nats_of_exits(model: Any, text: Tensor, prompt_tokens: int) -> list[float]:
    """Nats per token after the prompt, of the embeddings and of the first layer, by the model's own states and head."""
    hidden, head = model(text, output_hidden_states=True).hidden_states, model.get_output_embeddings()
    written = text[0, prompt_tokens:, None]
    log_p = [head(states)[0, prompt_tokens - 1 : -1].double().log_softmax(-1) for states in hidden[:2]]
    return [-float(values.gather(-1, written).mean()) for values in log_p]


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
def test_the_figures_are_those_of_the_formula(name: str) -> None:
    """Against hidden states that the model itself returns, and its own norm and head."""
    model = tiny_model(name)
    quality = exit_quality(model, [1, 0])
    prompt = probe_inputs(model)["input_ids"]
    text = greedy_text(model, prompt, model.generation_config.eos_token_id)
    assert quality.bare == pytest.approx(nats_of_exits(model, text, len(prompt[0])), rel=1e-5)
    assert quality.exits == (0, 1)
    assert quality.chance == math.log(model.config.vocab_size)


def test_the_text_is_greedy_and_long_enough_whatever_the_models_own_generation_config_asks_for() -> None:
    """Its greedy text ends at once, and it asks for beams, a strategy that transformers dropped, stop strings, several
    texts, and more than tokens.
    """
    model = tiny_model("llama")
    prompt = probe_inputs(model)["input_ids"]
    end = int(greedy_text(model, prompt, None)[0, len(prompt[0])])
    model.generation_config.update(eos_token_id=end, num_beams=3, penalty_alpha=0.6, top_k=4, stop_strings=["."])
    model.generation_config.update(num_return_sequences=3, return_dict_in_generate=True, output_scores=True)
    text = greedy_text(model, prompt, end)
    assert exit_quality(model, [0, 1]).bare == pytest.approx(nats_of_exits(model, text, len(prompt[0])), rel=1e-5)


@pytest.mark.parametrize("room", [1, 10])
def test_the_text_ends_with_the_context(room: int) -> None:
    torch.manual_seed(0)
    prompt_tokens = probe_inputs(tiny_model("gpt2"))["input_ids"].shape[1]
    config = GPT2Config(vocab_size=100, n_positions=prompt_tokens + room, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()  # whose end, 50256, is no token of its vocabulary
    prompt = probe_inputs(model)["input_ids"]
    text = greedy_text(model, prompt, None, room)
    assert exit_quality(model, [0, 1]).bare == pytest.approx(nats_of_exits(model, text, prompt_tokens), rel=1e-5)


def test_a_context_without_room_for_a_text_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=6, n_embd=16, n_layer=2, n_head=2)).eval()
    with pytest.raises(ModelError, match="GPT2LMHeadModel reads 6 tokens; exits need more than 6"):
        exit_quality(model, [0, 1])


def test_an_exit_whose_states_are_too_long_is_noise_without_the_norm() -> None:
    model = tiny_model("llama")
    with torch.no_grad():  # the head is sure of a token, which the last layer takes no heed of
        model.model.embed_tokens.weight *= 1e3
        model.model.layers[-1].mlp.down_proj.weight *= 1e6
    quality = exit_quality(model, [0, 1])
    assert quality.noisy() == (0, 1)
    assert max(quality.normed) < min(quality.bare) / 10


def test_noise_is_no_better_than_chance() -> None:
    quality = ExitQuality((1, 2, 3), bare=(5.0, 7.0, math.nan), normed=(6.0, 1.0, 1.0), chance=6.0)
    assert quality.noisy() == (2, 3)
    assert quality.noisy(final_norm=True) == (1,)


def test_exits_that_are_not_there_are_refused() -> None:
    with pytest.raises(OptionError, match="layer 9"):
        exit_quality(tiny_model("llama"), [9])
