"""The tiny models: every type is one of three things, and layers of all kinds are kept."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from decoding.errors import ModelError
from decoding.tools.architectures.exceptions import EXCEPTIONS, NOT_TEXT
from decoding.tools.architectures.tiny import WINDOW, causal_types, tiny_config, tiny_model


def test_every_type_of_the_mapping_is_there() -> None:
    assert causal_types() == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert set(NOT_TEXT) <= set(causal_types())
    assert set(EXCEPTIONS) <= set(causal_types())


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("gemma2", {"sliding_attention", "full_attention"}),
        ("qwen2", {"sliding_attention", "full_attention"}),
        ("llama4_text", {"chunked_attention", "full_attention"}),
        ("qwen3_next", {"linear_attention", "full_attention"}),
        ("nemotron_h", {"linear_attention", "full_attention", "moe", "mlp"}),
    ],
)
def test_each_kind_of_layer_is_kept(model_type: str, kinds: set[str]) -> None:
    config = tiny_config(model_type)
    assert set(config.layer_types) == kinds
    assert config.num_hidden_layers == len(config.layer_types) == 4
    assert getattr(config, "sliding_window", WINDOW) in (WINDOW, None)


def test_nested_configurations_are_shrunk() -> None:
    assert tiny_config("gemma3").text_config.hidden_size == 32


def test_a_type_that_writes_no_text_says_so() -> None:
    with pytest.raises(ModelError, match="musicgen: writes audio codes"):
        tiny_model("musicgen")
