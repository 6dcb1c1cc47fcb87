"""Options of transformers' generation config beside a strategy: what is read, what is refused, and in which words."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from transformers import GenerationConfig, QuantizedCache, WatermarkingConfig

from decoding.errors import OptionError
from decoding.strategies.effective_config import decoded_with
from decoding.strategies.generation_options import (
    EVALUATIONS_REFUSE,
    OPTIONS,
    QUANTIZED_CACHE,
    REFUSED,
    WATERMARKING,
    check_apply,
    check_tokens,
    checked_options,
    options_from_text,
)
from decoding.strategies.registry import parse_strategy


def test_every_option_of_transformers_is_taken_or_refused() -> None:
    declared = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    assert declared <= OPTIONS.keys() | REFUSED.keys()
    assert not OPTIONS.keys() & REFUSED.keys()
    assert set(EVALUATIONS_REFUSE) <= OPTIONS.keys()


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("repetition_penalty=1.2", 1.2), ("repetition_penalty=2", 2.0), ("no_repeat_ngram_size = 3", 3),
        ("min_p=0.05", 0.05), ("renormalize_logits=True", True), ("early_stopping=never", "never"),
        ("early_stopping=false", False), ("suppress_tokens=5,6", [5, 6]), ("suppress_tokens=5", [5]),
        ("eos_token_id=13", 13), ("eos_token_id=13,2", [13, 2]), ("bad_words_ids=[[5], [6, 7]]", [[5], [6, 7]]),
        ("sequence_bias=[[[5], -10.0]]", [[[5], -10.0]]), ("exponential_decay_length_penalty=30,1.05", [30, 1.05]),
        ('stop_strings=["a, b", "c"]', ["a, b", "c"]), ("stop_strings=a, b", "a, b"),
        ("drafts=exit:2", "exit:2"), ("draft_tokens=4", 4), ("draft_tokens=auto", "auto"),
        ('watermarking_config={"bias": 2.5}', {"bias": 2.5}), ("cache_implementation=static", "static"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_its_option_needs_it(pair: str, value: Any) -> None:
    ((_, read),) = options_from_text([pair]).items()
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("repetition_penalti=1.2", r"transformers has no such option; did you mean repetition_penalty"),
        ("repetition_penalty", r"'repetition_penalty': expected name=value"),
        ("=1", r"'=1': expected name=value"),
        ("repetition_penalty=much", r"repetition_penalty='much': must be a number$"),
        ("repetition_penalty=0", r"repetition_penalty=0.0: must be a number above 0"),
        ("repetition_penalty=nan", r"repetition_penalty=nan: must be a number above 0"),
        ("no_repeat_ngram_size=2.5", r"no_repeat_ngram_size='2.5': must be a whole number$"),
        ("no_repeat_ngram_size=-1", r"no_repeat_ngram_size=-1: must be a whole number from 0"),
        ("min_p=1.5", r"min_p=1.5: must be a number from 0 to 1"),
        ("top_h=0", r"top_h=0.0: must be a number above 0"),
        ("renormalize_logits=1", r"renormalize_logits='1': must be true or false"),
        ("early_stopping=maybe", r"early_stopping='maybe': must be true, false or never"),
        ("suppress_tokens=a,b", r"suppress_tokens='a,b': must be numbers with commas between"),
        ("suppress_tokens=1.5", r"suppress_tokens=\[1.5\]: must be a token's number"),
        ("bad_words_ids=5", r"bad_words_ids=5: must be lists of tokens' numbers"),
        ("bad_words_ids=[5", r"bad_words_ids='\[5': must be a JSON list"),
        ("sequence_bias=[[[5], 1]]", r"sequence_bias=.*: must be pairs of tokens and a bias"),
        ("exponential_decay_length_penalty=30", r"must be a number of tokens and a factor above 0"),
        ("watermarking_config=[]", r"watermarking_config=\[\]: must be a JSON object"),
        ('watermarking_config={"seeding_scheme": "right"}', r"seeding_scheme='right': must be lefthash or selfhash"),
        ('watermarking_config={"key": 1}', r"watermarking_config: has no key 'key'; .*expected one of greenlist_ratio"),
        ('cache_config={"bits": 4}', r"cache_config: has no key 'bits'; did you mean nbits"),
        ('cache_config={"nbits": 0}', r"cache_config: nbits=0: must be a whole number from 1"),
        ("exponential_decay_length_penalty=30,nan", r"must be a number of tokens and a factor above 0"),
        ("cache_implementation=statik", r"cache_implementation='statik'; did you mean static"),
        ("max_new_tokens=5", r"max_new_tokens: is given by --max-new-tokens N"),
        ("temperature=0.7", r"is a parameter of strategies that sample: --strategy sampling:temperature=V"),
        ("num_beams=2", r"num_beams: is a parameter of beam search: --strategy beam:num_beams=N"),
        ("do_sample=true", r"do_sample: is decided by the strategy"),
        ("penalty_alpha=0.6", r"--strategy contrastive-search:penalty_alpha=VALUE"),
        ("prompt_lookup_num_tokens=3", r"is drafts=prompt-lookup here, with draft_tokens=N"),
        ("num_assistant_tokens=3", r"belongs to transformers' assisted decoding; drafts=MODEL and draft_tokens=N"),
        ("drafts=exit:two", r"drafts='exit:two': must end with how many layers are read, such as exit:8"),
        ("drafts=", r"drafts='': must be prompt-lookup, amateur"),
        ("draft_tokens=0", r"draft_tokens=0: must be a whole number from 1, or auto"),
        ("draft_tokens=many", r"draft_tokens='many': must be a whole number from 1 on, or auto"),
        ("return_dict_in_generate=true", r"asks for more than tokens"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_in_one_line(pair: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        options_from_text([pair])
    assert str(error.value).startswith("--generation-config ")
    assert "\n" not in str(error.value)


def test_an_option_is_given_once() -> None:
    with pytest.raises(OptionError, match="--generation-config repetition_penalty: given twice"):
        options_from_text(["repetition_penalty=1.2", "repetition_penalty=1.3"])


def test_python_takes_the_same_with_the_numbers_of_other_libraries() -> None:
    given = {
        "repetition_penalty": np.float32(1.2), "no_repeat_ngram_size": torch.tensor(3), "min_p": None,
        "suppress_tokens": np.array([5, 6]),
    }  # fmt: skip
    assert checked_options(given) == {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "suppress_tokens": [5, 6]}
    for wrong in ({"repetition_penalty": "1.2"}, {"max_new_tokens": 3}, {"penalty": 1.0}, ["repetition_penalty=1.2"]):
        with pytest.raises(OptionError, match="generation_config"):
            checked_options(wrong)  # type: ignore[arg-type]


def test_evaluations_refuse_what_is_their_tasks() -> None:
    for name in EVALUATIONS_REFUSE:
        with pytest.raises(OptionError, match=f"--generation-config {name}: "):
            options_from_text([f"{name}=1"], EVALUATIONS_REFUSE)
    assert options_from_text(["stop_strings=x"]) == {"stop_strings": "x"}


def test_an_option_without_effect_on_any_strategy_is_refused() -> None:
    greedy, sampling, beam = map(parse_strategy, ("greedy", "sampling", "beam"))
    check_apply({"min_p": 0.1, "repetition_penalty": 1.2}, [greedy, sampling])
    check_apply({"length_penalty": 2.0}, [beam])
    with pytest.raises(OptionError, match="min_p: has an effect with sampling alone, and greedy has none"):
        check_apply({"min_p": 0.1}, [greedy, beam])
    check_apply({"drafts": "prompt-lookup"}, [beam, greedy])
    with pytest.raises(OptionError, match="drafts: beam reads no drafts; expected another strategy"):
        check_apply({"drafts": "prompt-lookup"}, [beam])
    with pytest.raises(OptionError, match="length_penalty: has an effect with beams alone"):
        check_apply({"length_penalty": 2.0}, [greedy, sampling])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("forced_eos_token_id", 9), ("eos_token_id", [2, 9]), ("suppress_tokens", [9]),
        ("bad_words_ids", [[1], [2, 9]]),
        ("forced_bos_token_id", 9),
    ],
)  # fmt: skip
def test_a_token_that_the_model_does_not_have_is_refused(name: str, value: Any) -> None:
    options = checked_options({name: value})
    check_tokens(options, 10)
    with pytest.raises(OptionError, match=f"{name}=9: the model's tokens are 0 to 8"):
        check_tokens(options, 9)


def test_the_keys_of_objects_are_those_of_transformers() -> None:
    assert list(WATERMARKING) == list(inspect.signature(WatermarkingConfig).parameters)
    of_cache = set(inspect.signature(QuantizedCache).parameters) - {"config"}
    assert set(QUANTIZED_CACHE) == of_cache


def test_settings_of_a_cache_that_takes_none_are_refused() -> None:
    options = checked_options({"cache_config": {"nbits": 4}})
    with (
        pytest.raises(OptionError, match="cache_config: has an effect with cache_implementation=quantized alone"),
        decoded_with(tiny_model("llama"), options),
    ):
        pass
