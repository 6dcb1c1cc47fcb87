"""Arguments of decoding.generate: what is refused in one line, and what the first one may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_ids, tiny_model, word_tokenizer
from transformers import PreTrainedTokenizerFast, WatermarkingConfig

import decoding
from decoding import ContrastiveSearch, InputError, OptionError

SEARCH = {"penalty_alpha": 0.6, "top_k": 4}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"prompt_lookup_num_tokens": 3}, "in its own way: pass drafts='prompt-lookup', draft_tokens=3 in its place"),
        (
            {"assistant_early_exit": 1},
            "assistant_early_exit: contrastive-search drafts in its own way: pass drafts='exit:1'",
        ),
        ({"cache_implementation": "paged"}, "cache_implementation='paged'"),
        ({"dola_layers": "high"}, "dola_layers"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_by_name(llama: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        decoding.generate(llama, random_ids(1, 4), max_new_tokens=3, **SEARCH, **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watermarking_config": {"biass": 2.0}}, "watermarking_config: has no key 'biass'; did you mean bias?"),
        ({"watermarking_config": {"bias": "x"}}, "watermarking_config: bias='x': must be a number"),
        ({"watermarking_config": WatermarkingConfig}, "watermarking_config=<class .*must be a JSON object, of green"),
        (
            {"cache_implementation": "quantized", "cache_config": {"bits": 4}},
            "cache_config: has no key 'bits'; .*",
        ),
        ({"cache_config": {"nbits": 4}}, "cache_config: has an effect with cache_implementation=quantized alone"),
        ({"compile_config": {"mode": "x"}}, "compile_config={'mode': 'x'}: must be a transformers.CompileConfig"),
        ({"continuous_batching_config": {"x": 1}}, "belongs to continuous batching"),
        (
            {"generation_config": {"top_k": 3}},
            "generation_config={'top_k': 3}: must be a transformers.Gen",
        ),
        ({"sequence_bias": {(3,): "x"}}, "sequence_bias=.*: must be pairs of tokens and a bias"),
        ({"stop_strings": ""}, "stop_strings='': must be a text"),
        ({"suppress_tokens": 3}, "suppress_tokens=3: must be a list of tokens' numbers"),
        ({"exponential_decay_length_penalty": (1, float("nan"))}, "must be a number of tokens and a factor above 0"),
        ({"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": None}, "needs an end token"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: must be a whole number from 1"),
        ({"max_new_tokens": True}, "max_new_tokens=True: must be a whole number"),
        ({"temperature": float("nan")}, "temperature=nan: must be a number from 0 up"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>': must be a token's number"),
        ({"streamer": print}, "streamer=<built-in.*must have put"),
        ({"stopping_criteria": len}, "stopping_criteria=<built-in.*must be a list"),
        ({"logits_processor": [5]}, r"logits_processor=\[5\]: must be a list"),
        ({"compile": "yes"}, "compile='yes': must be True or False"),
        ({"strategy": 0}, "strategy=0: must be a strategy such as"),
        ({"past_key_values": [1]}, "past_key_values is a list: must be a Cache of transformers"),
        ({"position_ids": torch.ones(1, 4, dtype=torch.bool)}, "position_ids must be a tensor of whole numbers"),
    ],
    ids=str,
)
def test_options_of_another_kind_are_refused_in_one_line(llama: Any, options: dict[str, Any], message: str) -> None:
    call = {"max_new_tokens": 3, "strategy": ContrastiveSearch(), **options}
    with pytest.raises((OptionError, InputError), match=message) as raised:
        decoding.generate(llama, random_ids(1, 4), **call)
    assert len(str(raised.value)) < 250


def test_options_of_the_right_kind_pass(llama: Any) -> None:
    search = ContrastiveSearch()
    for options in (
        {"watermarking_config": {"bias": 3.0}}, {"watermarking_config": WatermarkingConfig(bias=3.0)},
        {"sequence_bias": {(3,): float("-inf")}}, {"sequence_bias": [[[3], -2.0]]}, {"eos_token_id": -1},
        {"eos_token_id": torch.tensor([2, 3])}, {"max_new_tokens": np.int64(2)}, {"suppress_tokens": torch.tensor([3])},
    ):  # fmt: skip
        decoding.generate(llama, random_ids(1, 4), strategy=search, **{"max_new_tokens": 2, **options})


def test_an_assistant_is_refused_in_both_ways_in(llama: Any) -> None:
    with pytest.raises(OptionError, match=r"assistant_model: contrastive-search .* pass drafts=MODEL in its place"):
        llama.generate(random_ids(1, 4), custom_generate=ContrastiveSearch(), assistant_model=llama, max_new_tokens=3)
    with pytest.raises(OptionError, match="assistant_model"):
        decoding.generate(
            llama, random_ids(1, 4), strategy=ContrastiveSearch(), assistant_model=llama, max_new_tokens=3
        )


def test_alpha_without_k_and_no_strategy_are_refused(llama: Any) -> None:
    with pytest.raises(OptionError, match="unknown strategy 'contrastive'; did you mean contrastive-search"):
        decoding.generate(llama, random_ids(1, 4), strategy="contrastive")


# --- the output of a tokenizer as the first argument ----------------------------------------------------------------


@pytest.mark.parametrize("strategy", [None, ContrastiveSearch(**SEARCH)], ids=["plain", "contrastive-search"])
def test_the_first_argument_may_be_what_a_tokenizer_returns(llama: Any, strategy: Any, tokenizer: Any) -> None:
    encoding = tokenizer(["w5 w9 w3", "w8"], return_tensors="pt", padding=True, padding_side="left")
    encoding.pop("token_type_ids", None)
    settings = {"strategy": strategy, "max_new_tokens": 6, "do_sample": False}
    expected = decoding.generate(llama, **encoding, **settings)
    assert decoding.generate(llama, encoding, **settings).tolist() == expected.tolist()
    assert decoding.generate(llama, dict(encoding), **settings).tolist() == expected.tolist()
    stream = decoding.open_stream(llama, encoding)
    assert torch.equal(
        stream.logits(stream.prompt), (named := decoding.open_stream(llama, **encoding)).logits(named.prompt)
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("w5 w9", r"the prompt is text: give its tokens"),
        ([[5, 9]], r"must be a tensor \(batch, length\), and are a list"),
        (torch.tensor([[5, 9]]).numpy(), "are a ndarray"),
        ({"input_ids": [5, 9]}, "return_tensors='pt'"),
    ],
    ids=["text", "lists", "numpy", "encoding-of-lists"],
)
def test_a_prompt_that_is_no_tensor_is_refused_in_one_line(llama: Any, prompt: Any, message: str) -> None:
    for strategy in (None, ContrastiveSearch(**SEARCH)):
        with pytest.raises(decoding.InputError, match=message):
            decoding.generate(llama, prompt, strategy=strategy)
    with pytest.raises(decoding.InputError, match=message):
        decoding.open_stream(llama, prompt)


def test_an_input_in_the_first_argument_and_by_name_is_refused(llama: Any) -> None:
    with pytest.raises(decoding.InputError, match="input_ids is given twice"):
        decoding.generate(llama, {"input_ids": random_ids(1, 4)}, input_ids=random_ids(1, 4))
