"""What ``compile=True`` refuses, and why it says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import LLAMA_LIKE, VOCAB, tiny_model
from transformers import (
    DynamicCache,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import decoding
from decoding import ContrastiveSearch, DoLa, OptionError

IDS = torch.tensor([[5, 9, 31, 7, 64, 12]])


def _refusal(model: Any, **options: Any) -> str:
    options = {"strategy": ContrastiveSearch(0.6, 4), "input_ids": IDS, **options}
    with pytest.raises(OptionError) as refusal:
        decoding.generate(model, max_new_tokens=4, compile=True, **options)
    message = str(refusal.value)
    assert message.startswith(f"compile=True: {type(model).__name__}'s steps cannot be captured: ")
    assert message.endswith("; leave compile out")
    assert "\n" not in message
    return message


def _mixtral(experts: str) -> Any:
    return MixtralForCausalLM(MixtralConfig(**LLAMA_LIKE, num_local_experts=4, experts_implementation=experts)).eval()


def _gpt_neo() -> Any:
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=1024,
        )
    ).eval()  # fmt: skip


def _dynamic_rope() -> Any:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE, rope_parameters=rope)).eval()


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "encoder-decoder": (lambda: tiny_model("t5"), "it is an encoder-decoder"),
    "recurrent": (lambda: tiny_model("mamba"), "it keeps a state of another kind than keys and values"),
    "no position ids": (lambda: tiny_model("bloom"), "its forward() takes no position ids"),
    "experts called one by one": (lambda: _mixtral("eager"), "asks for values on the host (aten._local_scalar_dense"),
    "frequencies by the text's length": (_dynamic_rope, "asks for values on the host (aten._local_scalar_dense"),
    "a mask that counts from the end of the keys": (_gpt_neo, "with storage of a fixed size its outputs differ"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_whose_steps_cannot_be_captured(kind: str) -> None:
    make, reason = MODELS[kind]
    torch.manual_seed(0)
    model = make()
    assert reason in _refusal(model)
    assert reason in _refusal(model)  # remembered, not half checked


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"past_key_values": DynamicCache()}, "past_key_values is a cache of the caller's own"),
        ({"cache_implementation": "static"}, "its cache is static; it must be the default cache"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states=True asks for what"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions=True asks for what"),
        ({"inputs_embeds": torch.zeros(1, 6, 32)}, "its steps are given inputs_embeds beside tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_calls_whose_steps_cannot_be_captured(options: dict[str, Any], reason: str) -> None:
    assert reason in _refusal(tiny_model("llama"), **options)


def test_a_forward_hook_of_somebody_else_would_not_run() -> None:
    model = tiny_model("llama")

    def steer(*_: Any) -> None: ...

    handle = model.model.layers[1].register_forward_hook(steer)
    assert "steer hangs on its modules as a forward hook" in _refusal(model)
    handle.remove()
    decoding.generate(model, IDS, strategy=DoLa("high"), max_new_tokens=4, compile=True)


def test_autocast_casts_weights_anew() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "under torch.autocast" in _refusal(tiny_model("llama"))


def test_an_amateur_is_held_to_the_same() -> None:
    strategy = decoding.ContrastiveDecoding(_mixtral("eager"))
    with pytest.raises(OptionError, match="MixtralForCausalLM's steps cannot be captured"):
        decoding.generate(tiny_model("llama"), IDS, strategy=strategy, max_new_tokens=4, compile=True)


def test_experts_in_one_matrix_product_are_accepted() -> None:
    torch.manual_seed(0)
    model = _mixtral("batched_mm")
    model.generation_config.eos_token_id = None
    tokens = [
        decoding.generate(model, IDS, penalty_alpha=0.6, top_k=4, max_new_tokens=12, compile=compile).tolist()
        for compile in (False, True)
    ]
    assert tokens[0] == tokens[1]


def test_without_a_strategy_there_is_nothing_to_capture() -> None:
    with pytest.raises(OptionError, match="transformers decodes this call: pass strategy="):
        decoding.generate(tiny_model("llama"), IDS, max_new_tokens=4, compile=True)
