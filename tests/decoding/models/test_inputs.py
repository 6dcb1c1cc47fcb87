"""Inputs of a call: padding, embeddings, the cache of another call; and inputs that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from search_oracle import contrastive_search_tokens
from tiny_models import random_ids, tiny_model
from transformers import DynamicCache

import decoding
from decoding import InputError
from decoding.models.inputs import prompts_among

SEARCH = {"penalty_alpha": 0.6, "top_k": 4}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


def test_rows_do_not_depend_on_their_batch(llama: Any) -> None:
    rows = [random_ids(1, length, seed=length) for length in (3, 9, 6)]
    ids = torch.cat([torch.nn.functional.pad(row, (9 - row.shape[1], 0)) for row in rows])
    batch = decoding.generate(llama, ids, attention_mask=(ids != 0).long(), max_new_tokens=12, **SEARCH)
    for row, prompt in zip(batch, rows, strict=True):
        assert row[9:].tolist() == contrastive_search_tokens(llama, prompt[0].tolist(), 0.6, 4, 12)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma2", "bloom"])
def test_a_call_continues_from_the_cache_of_another(name: str) -> None:
    model, ids = tiny_model(name), random_ids(2, 11)
    whole = decoding.generate(model, ids, max_new_tokens=14, **SEARCH)
    first = decoding.generate(model, ids, max_new_tokens=6, return_dict_in_generate=True, **SEARCH)
    assert first.past_key_values.get_seq_length() == 11 + 5
    rest = decoding.generate(model, first.sequences, past_key_values=first.past_key_values, max_new_tokens=8, **SEARCH)
    assert rest.tolist() == whole.tolist()


def test_a_cache_that_plain_generate_filled_is_continued_exactly(llama: Any) -> None:
    ids = random_ids(2, 11)
    plain = llama.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    expected = decoding.generate(llama, plain.sequences, max_new_tokens=8, **SEARCH)
    continued = decoding.generate(
        llama, plain.sequences, past_key_values=plain.past_key_values, max_new_tokens=8, **SEARCH
    )
    assert continued.tolist() == expected.tolist()


def test_a_cache_handed_in_is_handed_back_and_plain_generate_continues_it(llama: Any) -> None:
    ids, cache = random_ids(1, 11), DynamicCache(config=llama.config)
    output = decoding.generate(
        llama, ids, past_key_values=cache, max_new_tokens=6, return_dict_in_generate=True, **SEARCH
    )
    assert output.past_key_values is cache
    expected = llama.generate(output.sequences, max_new_tokens=6, do_sample=False)
    assert llama.generate(output.sequences, past_key_values=cache, max_new_tokens=6, do_sample=False).tolist() == (
        expected.tolist()
    )


def test_a_history_that_belongs_to_other_tokens_is_not_used(llama: Any) -> None:
    ids = random_ids(1, 11)
    first = decoding.generate(llama, ids, max_new_tokens=6, return_dict_in_generate=True, **SEARCH)
    cache = first.past_key_values
    cache.crop(-4)
    with torch.no_grad():  # other tokens after the same prefix
        other = torch.cat([first.sequences[:, :12], random_ids(1, 4, seed=9)], dim=1)
        llama(other[:, 12:], past_key_values=cache)
    text = torch.cat([other, random_ids(1, 2, seed=10)], dim=1)
    expected = decoding.generate(llama, text, max_new_tokens=8, **SEARCH)
    assert (
        decoding.generate(llama, text, past_key_values=cache, max_new_tokens=8, **SEARCH).tolist() == expected.tolist()
    )


def test_embeddings_as_prompt_give_the_tokens_of_their_ids(llama: Any) -> None:
    ids = random_ids(2, 9)
    expected = decoding.generate(llama, ids, max_new_tokens=9, **SEARCH)[:, 9:]
    embeds = llama.get_input_embeddings()(ids).detach()
    given = decoding.generate(llama, inputs_embeds=embeds, max_new_tokens=9, **SEARCH)
    assert given.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "t5"])
@pytest.mark.parametrize(
    "options", [{"prefill_chunk_size": 4}, {"cache_implementation": "static"}, {"cache_implementation": "offloaded"}]
)
def test_chunked_prefill_and_other_caches_change_nothing(name: str, options: dict[str, Any]) -> None:
    if name == "t5" and "prefill_chunk_size" in options:
        pytest.skip("its prompt, the decoder's start token, is one token")
    if options.get("cache_implementation") == "offloaded" and not torch.cuda.is_available():
        pytest.skip("transformers offloads caches from GPUs only")
    llama, ids = tiny_model(name), random_ids(2, 11)
    expected = decoding.generate(llama, ids, max_new_tokens=8, **SEARCH)
    assert decoding.generate(llama, ids, max_new_tokens=8, **options, **SEARCH).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "the prompt is empty"),
        ({"input_ids": torch.full((1, 128), 5)}, "the prompt has 128 tokens and the model's context 128"),
        (
            {"input_ids": torch.full((2, 4), 5), "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])},
            "row 1 is all padding",
        ),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(llama: Any, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        decoding.generate(llama, **inputs, max_new_tokens=3, **SEARCH)
    assert message in str(raised.value)


TOKENS, MASK = torch.ones(2, 5), torch.ones(3, 5)


@pytest.mark.parametrize(
    ("named", "rows", "prompts"),
    [
        ({"input_ids": TOKENS}, 6, 2),
        ({"pixel_values": torch.ones(4, 3), "input_ids": TOKENS}, 6, 2),
        ({"pixel_values": torch.ones(4, 3), "attention_mask": MASK}, 6, 3),
        ({"token_type_ids": MASK, "pixel_values": torch.ones(1, 3)}, 6, 3),
        ({"input_features": TOKENS, "decoder_input_ids": MASK}, 6, 2),  # of other inputs that with the fewest parts
        ({"input_ids": torch.ones(4, 5), "pixel_values": TOKENS}, 6, 6),  # no batch has a prompt in one row and a half
        ({"pixel_values": torch.ones(4, 3), "scale": torch.tensor(2.0), "encoder_outputs": None}, 6, 6),
        ({"attention_mask": torch.ones(0, 5)}, 6, 6),
        ({}, 6, 6),
    ],
)
def test_inputs_tell_how_many_prompts_a_batch_has(named: dict[str, Any], rows: int, prompts: int) -> None:
    assert prompts_among(named, rows) == prompts
