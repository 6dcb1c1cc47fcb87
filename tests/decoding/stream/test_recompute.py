"""Decoding without a cache: where the call asks for it, and where a model's own cache is of no use."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from search_oracle import contrastive_search_tokens
from tiny_models import left_padded, random_prompt, tiny_model
from transformers import DynamicCache

import decoding
from decoding import (
    LOL,
    ContextAware,
    ContrastiveDecoding,
    ContrastiveSearch,
    DecodingWarning,
    DoLa,
    InputError,
    ModelError,
    OptionError,
    Strategy,
)
from decoding.capabilities import branching
from decoding.capabilities.branching import branching_of
from decoding.stream.stream import Stream
from decoding.tools.architectures.tiny import causal_types
from decoding.tools.architectures.tiny import tiny_model as tiny_type
from decoding.transformers_private import CACHE_ARGUMENT

# In transformers 5.17 Git answers otherwise from its cache without padding too, so it is never read from it.
git_reads_its_cache = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="Git misreads its cache without padding, too"
)
PROMPTS = [random_prompt(6, seed=1), random_prompt(15, seed=2)]
SEARCH = {"penalty_alpha": 0.6, "top_k": 4, "max_new_tokens": 5, "pad_token_id": 0, "do_sample": False}


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("llama", ContrastiveSearch(0.6, 4)), ("llama", DoLa([0, 1])), ("gemma2", DoLa([0, 1])),
        ("bloom", ContrastiveSearch(0.6, 4)), ("t5", ContrastiveSearch(0.6, 4)),
    ],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_a_call_without_a_cache_gives_the_same_tokens(name: str, strategy: Strategy) -> None:
    model = tiny_model(name)
    batch = left_padded(PROMPTS)
    options = {"strategy": strategy, "max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True}
    cached = decoding.generate(model, **batch, **options)
    with pytest.warns(DecodingWarning, match="use_cache=False; the whole text is recomputed"):
        without = decoding.generate(model, **batch, **options, use_cache=False)
    assert without.sequences.tolist() == cached.sequences.tolist()
    for mine, theirs in zip(without.scores, cached.scores, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)  # float32, sums in another order
    assert without.past_key_values is None


@pytest.mark.filterwarnings("ignore::decoding.DecodingWarning")
def test_no_reader_of_a_call_without_a_cache_keeps_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, amateur = tiny_model("llama"), tiny_model("llama", seed=1)
    strategies = [ContrastiveDecoding(amateur), ContextAware(context=[5, 6, 7]), LOL(amateur, [1], guidance=[8, 9])]
    opened: list[Stream] = []
    made = Stream.__init__
    monkeypatch.setattr(Stream, "__init__", lambda self, *a, **k: (opened.append(self), made(self, *a, **k))[1])
    for strategy in strategies:
        options = {"strategy": strategy, "max_new_tokens": 6}
        expected = decoding.generate(model, **left_padded(PROMPTS), **options)
        opened.clear()
        tokens = decoding.generate(model, **left_padded(PROMPTS), **options, use_cache=False)
        assert tokens.tolist() == expected.tolist()
        assert len(opened) > 1
        assert {stream.recompute_reason for stream in opened} == {"use_cache=False"}


@pytest.mark.parametrize("model_type", ["openai-gpt", "prophetnet", "rwkv"])
def test_a_model_whose_cache_is_of_no_use_is_served_and_its_cost_told_once(model_type: str) -> None:
    model, prompt = tiny_type(model_type), random_prompt(12, seed=3)
    with pytest.warns(DecodingWarning, match="the whole text is recomputed at every step"):
        tokens = decoding.generate(model, torch.tensor([prompt]), **SEARCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DecodingWarning)
        decoding.generate(model, torch.tensor([prompt]), **SEARCH)
    assert tokens[0, 12:].tolist() == contrastive_search_tokens(model, prompt, 0.6, 4, 5)


@git_reads_its_cache
def test_a_model_that_misreads_its_cache_behind_padding_only_shares_its_prefix_without() -> None:
    model = tiny_type("git")
    assert branching_of(model, padded=False).way == "shared prefix"
    assert branching_of(model, padded=True).way == "recompute"
    with warnings.catch_warnings():
        warnings.simplefilter("error", DecodingWarning)
        tokens = decoding.generate(model, torch.tensor([PROMPTS[1]]), **SEARCH)
    with pytest.warns(DecodingWarning, match="GitForCausalLM: continuing from its cache differs"):
        both = decoding.generate(model, **left_padded(PROMPTS), **SEARCH)
    assert both[1].tolist() == tokens[0].tolist()
    assert both[0, 15:].tolist() == contrastive_search_tokens(model, PROMPTS[0], 0.6, 4, 5)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("cpmant", "its output for a token changes with the tokens after it"),
        ("xlnet", "it reads tokens beside its text's"),
    ],
)
def test_a_model_that_no_way_of_branching_fits_is_refused(model_type: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        decoding.generate(tiny_type(model_type), torch.tensor([PROMPTS[1]]), **SEARCH)


@pytest.mark.parametrize(
    ("model_type", "unpadded"),
    [
        ("cpmant", None),
        pytest.param(
            "minimax_m3_vl_text", "fork",
            marks=pytest.mark.skipif("minimax_m3_vl_text" not in causal_types(), reason="not in this transformers"),
        ),
    ],
)  # fmt: skip
def test_a_refusal_of_padded_rows_looks_once_at_rows_without_padding(
    model_type: str, unpadded: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, checked, check = tiny_type(model_type), [], branching._check

    def watched(model: Any, use_cache: bool, padded: bool) -> Any:
        checked.append(padded)
        return check(model, use_cache, padded)

    monkeypatch.setattr(branching, "_check", watched)
    with pytest.raises(ModelError, match="so it cannot be branched") as refusal:
        branching_of(model)
    assert checked == [True, False]
    assert str(refusal.value).endswith("after padding: give it rows of one length, or one at a time") is bool(unpadded)
    if unpadded:
        assert branching_of(model, padded=False).way == unpadded


@git_reads_its_cache
@pytest.mark.filterwarnings("ignore::decoding.DecodingWarning")
def test_what_needs_a_cache_is_refused_by_name() -> None:
    model, batch = tiny_type("git"), left_padded(PROMPTS)
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"past_key_values": DynamicCache()}, InputError, f"{CACHE_ARGUMENT}: GitForCausalLM is read without a cache"),
        ({"prefill_chunk_size": 4}, OptionError, "prefill_chunk_size=4: GitForCausalLM reads a prompt differently"),
        ({"prefill_chunk_size": 4, "use_cache": False}, OptionError, "prefill_chunk_size=4: without a cache"),
        ({"use_cache": False, "compile": True}, OptionError, "compile=True.*use_cache=False"),
    ]
    for options, error, message in refused:
        with pytest.raises(error, match=message):
            decoding.generate(model, **batch, **SEARCH, **options)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(InputError, match="inputs_embeds: GitForCausalLM is read without a cache"):
        decoding.generate(model, inputs_embeds=embeds, attention_mask=batch["attention_mask"], **SEARCH)
