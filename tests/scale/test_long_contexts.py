"""Prompts of 16 thousand tokens, read and searched on, and of up to 8, held in memory that grows no faster."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

import decoding
from decoding import ContextAware, ContrastiveSearch
from decoding.stream.prepare import prepare_inputs

LONG = 16384
WIDTH, VOCAB = 32, 96
# Of a token: keys and values of one layer with one head as wide as the model; its hidden state and inverse norm.
CACHE, HISTORY = 2 * WIDTH * 4, WIDTH * 4 + 4


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, max_position_embeddings=2 * LONG,
        )
    ).eval()  # fmt: skip
    made.generation_config.eos_token_id = None
    with torch.no_grad():
        for weights in made.parameters():
            if weights.dim() >= 2:
                weights.mul_(10)  # so that it has opinions, which fresh weights do not
    return made


def prompt(length: int) -> Tensor:
    return torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(length))


def test_a_long_prompt_says_the_same_at_once_and_in_pieces(model: Any) -> None:
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, "pad_token_id": 0}
    whole, pieces = (
        decoding.generate(
            model, prompt(LONG), strategy=ContrastiveSearch(0.6, 4), prefill_chunk_size=size, **options
        )
        for size in (None, 4096)
    )  # fmt: skip
    assert whole.sequences[0, LONG:].tolist() == pieces.sequences[0, LONG:].tolist()
    for one, other in zip(whole.scores, pieces.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)  # float32 sums over 16k tokens in another order
    with torch.no_grad():  # the text read anew, in one pass
        read = model(whole.sequences, use_cache=False, output_hidden_states=True)
    states = torch.nn.functional.normalize(read.hidden_states[-1][0], dim=-1)
    for step, scores in enumerate(whole.scores):
        at, token = LONG + step, int(whole.sequences[0, LONG + step])
        expected = 0.4 * read.logits[0, at - 1].softmax(-1)[token] - 0.6 * (states[:at] @ states[at]).max()
        torch.testing.assert_close(scores[0, token], expected, atol=1e-4, rtol=1e-4)


def alive() -> dict[int, torch.UntypedStorage]:
    """Storages of all tensors that somebody holds, by address, held so that no address is used again."""
    gc.collect()
    storages = {}
    for tensor in gc.get_objects():
        if issubclass(type(tensor), Tensor):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage  # not its data's address: other tests leave tensors without data
    return storages


def held(model: Any, strategy: decoding.Strategy, length: int) -> int:
    """Bytes that a call holds between its steps on a prompt of this length."""
    before = alive()
    ids, kwargs, config = prepare_inputs(model, input_ids=prompt(length))
    config.max_length = length + 8
    with torch.no_grad():
        session = strategy.session(model, ids, kwargs, config)
        for _ in range(3):
            session.advance(session.greedy(ids, LogitsProcessorList()))
    del ids, kwargs
    # Only what is new: a model that another test left behind may go during the call, and is not the call's to count.
    found = sum(storage.nbytes() for address, storage in alive().items() if address not in before)
    session.release()
    return found


@pytest.mark.parametrize(
    ("strategy", "a_token", "length"),
    [
        (ContrastiveSearch(0.6, 4), CACHE + HISTORY, LONG // 2),
        (ContrastiveSearch(0.6, 4, max_history=1024), CACHE, LONG // 4),
        (ContextAware([5, 6, 7]), 2 * CACHE, LONG // 8),
    ],
    ids=["contrastive search", "a window of the history", "two readers"],
)
def test_what_is_held_grows_with_the_prompt_and_no_faster(
    model: Any, strategy: decoding.Strategy, a_token: int, length: int
) -> None:
    held(model, strategy, 64)  # what is found out once a model
    short, long = (held(model, strategy, size) for size in (length // 4, length))
    grown = (long - short) / (length - length // 4)
    # Each reader has token ids, mask and positions of 8 bytes; the candidates' mask has k rows of 4 bytes, up to twice
    # as many as it needs. A copy of the history or of a layer's keys would be more.
    beside = 0.01 * a_token + 24 * (a_token // CACHE) + 2 * 4 * 4
    assert a_token <= grown <= a_token + beside
    assert short <= (a_token + beside) * length // 4 + 2**20  # and a block of spare room
