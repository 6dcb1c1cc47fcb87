"""The effective generation config: strategies are what they are called, whatever a folder's file has."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from tiny_models import left_padded, random_prompt, tiny_model
from transformers import GenerationConfig

from decoding.api import generate_with
from decoding.errors import DecodingWarning, OptionError
from decoding.strategies.effective_config import (
    decoded_with,
    effective_config,
    options_of_folder,
    warn_of_folder,
)
from decoding.strategies.registry import StrategySpec, parse_strategy

# What real folders ship (Qwen2.5, Llama 3, BART for summaries), and what else may be in such a file.
PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 9, "min_length": 30,
    "exponential_decay_length_penalty": (1, 2.0), "sequence_bias": [[[5], 50.0]], "guidance_scale": 2.0,
    "encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2, "watermarking_config": {"bias": 9.0},
}  # fmt: skip
SAMPLERS: dict[str, Any] = {
    "do_sample": True, "temperature": 0.1, "top_k": 2, "top_p": 0.3, "typical_p": 0.3, "min_p": 0.5, "top_h": 0.3,
    "epsilon_cutoff": 0.2, "eta_cutoff": 0.2,
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "num_beams": 3, "length_penalty": 3.0, "early_stopping": True, "num_return_sequences": 2, "max_length": 9,
    "penalty_alpha": 0.9, "return_dict_in_generate": True, "output_scores": True, "renormalize_logits": True,
}  # fmt: skip


def shipped(model: Any, **entries: Any) -> Any:
    """A model whose folder had these entries."""
    model.generation_config = GenerationConfig(**entries, eos_token_id=END)
    return model


END = 39  # the first token that Llama chooses after the first prompt, so that lengths and ends have an effect


def tokens(spec: StrategySpec, model: Any, prompts: list[list[int]]) -> list[list[int]]:
    torch.manual_seed(0)
    return generate_with(spec, model, **left_padded(prompts), max_new_tokens=12, pad_token_id=0).tolist()


PROMPTS = [random_prompt(5, seed=1) * 2, random_prompt(6, seed=2)]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        *(
            ("llama", spec)
            for spec in (
                "greedy",
                "beam",
                "sampling:top_p=1.0",
                "top-k:top_k=9",
                "contrastive-search",
                "dola:layers=1",
                "fsd",
            )
        ),
        ("gpt2", "greedy"),
    ],
)
def test_a_strategy_chooses_the_same_whatever_the_folder_has(name: str, spec: str) -> None:
    strategy, model = parse_strategy(spec), tiny_model(name)
    plain = tokens(strategy, shipped(model), PROMPTS)
    for entries in (PENALTIES, SAMPLERS, OTHERS):
        shipped(model, **entries)
        with decoded_with(model, {}):
            assert tokens(strategy, model, PROMPTS) == plain


@pytest.mark.parametrize("entry", PENALTIES)
def test_without_it_the_folders_entries_act(entry: str) -> None:
    """Else the test above could not fail."""
    if entry in ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty"):
        pytest.skip("acts where the prompt's tokens would be chosen again")
    greedy, model = parse_strategy("greedy"), shipped(tiny_model("llama"))
    plain = tokens(greedy, model, PROMPTS)
    assert END in plain[0]
    assert tokens(greedy, shipped(model, **{entry: PENALTIES[entry]}), PROMPTS) != plain


def test_greedy_is_the_argmax_of_the_model() -> None:
    model = shipped(tiny_model("llama"), **PENALTIES, **SAMPLERS)
    ids = torch.tensor([PROMPTS[1]])
    with decoded_with(model, {}):
        ours = generate_with(parse_strategy("greedy"), model, input_ids=ids, max_new_tokens=8)
    for _ in range(8):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1)[:, None]], 1)
        if int(ids[0, -1]) == model.generation_config.eos_token_id:
            break
    assert ours.tolist() == ids.tolist()


def test_tokens_with_a_meaning_of_their_own_and_the_cache_stay() -> None:
    kept = {
        "pad_token_id": 3, "bos_token_id": 1, "decoder_start_token_id": 4,
        "forced_bos_token_id": 9, "forced_eos_token_id": 8, "suppress_tokens": [11, 12],
        "begin_suppress_tokens": [13], "bad_words_ids": [[3]], "cache_implementation": "static",
    }  # fmt: skip
    kept["lang_to_id"] = {"<|de|>": 14}  # which transformers does not declare, as in Whisper's folders
    model = shipped(tiny_model("llama"), **kept, **PENALTIES)
    shown = effective_config(parse_strategy("greedy"), model, {})
    assert shown == {**kept, "eos_token_id": END, "do_sample": False, "num_beams": 1}
    off = options_of_folder(model)
    assert off.keys() == PENALTIES.keys()
    assert off["watermarking_config"]["bias"] == 9.0


def test_options_act_on_every_strategy_and_samplers_on_those_that_sample() -> None:
    model = shipped(tiny_model("llama"), repetition_penalty=1.5)
    options = {"no_repeat_ngram_size": 2, "min_p": 0.2, "length_penalty": 2.0}
    shown = {
        name: effective_config(parse_strategy(name), model, options) for name in ("greedy", "sampling", "beam", "dola")
    }
    assert [config["no_repeat_ngram_size"] for config in shown.values()] == [2] * 4
    assert [name for name, config in shown.items() if "min_p" in config] == ["sampling"]
    assert [name for name, config in shown.items() if "length_penalty" in config] == ["beam"]
    assert not any("repetition_penalty" in config for config in shown.values())
    assert shown["sampling"]["top_k"] == 0  # and not transformers' default of 50
    beside = effective_config(parse_strategy("greedy"), model, options, folder=True)
    assert beside["repetition_penalty"] == 1.5


@pytest.mark.parametrize(
    "option", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"suppress_tokens": [110]}]
)
def test_an_option_gives_the_tokens_that_generate_gives_with_it(option: dict[str, Any]) -> None:
    model = tiny_model("llama")
    ids = torch.tensor([PROMPTS[1]])
    expected = shipped(copy.deepcopy(model)).generate(ids, max_new_tokens=12, do_sample=False, **option)
    with decoded_with(shipped(model, repetition_penalty=3.0), option):
        ours = generate_with(parse_strategy("greedy"), model, input_ids=ids, max_new_tokens=12)
    assert ours.tolist() == expected.tolist()


def test_the_models_own_config_is_as_before_even_after_an_error() -> None:
    model = shipped(tiny_model("llama"), **PENALTIES, **SAMPLERS)
    config, before = model.generation_config, copy.deepcopy(model.generation_config.to_dict())

    def interrupted() -> None:
        with decoded_with(model, {"min_p": 0.1}):
            assert model.generation_config.repetition_penalty is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.generation_config is config
    assert config.to_dict() == before


def test_a_wrapper_of_peft_decodes_with_it_too() -> None:
    peft = pytest.importorskip("peft")
    model = shipped(tiny_model("llama"), repetition_penalty=3.0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    ids = torch.tensor([PROMPTS[1]])
    plain = shipped(tiny_model("llama")).generate(ids, max_new_tokens=12, do_sample=False)
    with decoded_with(wrapped, {}):
        assert wrapped.generate(input_ids=ids, max_new_tokens=12, do_sample=False).tolist() == plain.tolist()
    assert model.generation_config.repetition_penalty == 3.0


def test_a_value_that_only_transformers_can_judge_is_refused_in_one_line() -> None:
    with pytest.raises(OptionError, match="generation_config: "):
        effective_config(
            parse_strategy("greedy"), tiny_model("llama"), {"watermarking_config": {"greenlist_ratio": 3.0}}
        )


def test_a_warning_names_what_is_off_and_how_to_turn_it_on() -> None:
    model = shipped(tiny_model("llama"), repetition_penalty=1.05, **SAMPLERS)
    with pytest.warns(
        DecodingWarning, match=r"has repetition_penalty=1.05: off here.*repetition_penalty=1.05 turns it"
    ):
        warn_of_folder(model, {})
    neutral = shipped(tiny_model("llama"), repetition_penalty=1.0, no_repeat_ngram_size=0, min_length=0, **SAMPLERS)
    for quiet, options in itertools.product((neutral, tiny_model("gpt2")), ({}, {"repetition_penalty": 1.05})):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_folder(quiet, options)
