"""Rows of a stream that are read to lengths of their own, against reading each text alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from streams import stream_with_way
from tiny_models import random_ids, tiny_model
from torch import Tensor
from transformers.cache_utils import DynamicCache

import decoding
from decoding import ModelError, Stream
from decoding.stream import separate_rows
from decoding.stream.tree_mask import masks_by_layer

SHARING = ["llama", "mistral-sliding", "gemma2", "gpt2", "opt", "cohere"]


def _open(model: Any, **options: Any) -> tuple[Stream, list[list[int]]]:
    """A stream over rows of 5 and 13 tokens (longer than the sliding windows), the first left-padded."""
    texts = [random_ids(5, seed=1).tolist(), random_ids(13, seed=2).tolist()]
    ids = torch.tensor([[0] * 8 + texts[0], texts[1]])
    mask = (torch.arange(13) >= torch.tensor([[8], [0]])).long()
    return decoding.open_stream(model, input_ids=ids, attention_mask=mask, **options), texts


@torch.no_grad()
def _alone(model: Any, text: list[int], n: int) -> Tensor:
    """(n, dim) the last hidden states of the last n tokens of a text."""
    return model(torch.tensor([text]), use_cache=False, output_hidden_states=True).hidden_states[-1][0, -n:]


def _close(value: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(value, reference, atol=2e-4, rtol=1e-3)  # float32, sums in another order


@pytest.mark.parametrize("name", SHARING)
def test_rows_that_keep_different_numbers_of_tokens_are_read_as_alone(name: str) -> None:
    model = tiny_model(name)
    stream, texts = _open(model)
    rows = stream.separate_rows()
    kept_of_rounds = [(4, 1), (1, 4), (0, 3), (3, 3), (2, 0), (4, 1)]
    for step, kept in enumerate(kept_of_rounds):
        tokens = random_ids(2, 4, seed=10 + step)
        before = list(rows.lengths)
        output = stream.extend(tokens)
        for row, text in enumerate(texts):
            _close(output.hidden[row], _alone(model, [*text, *tokens[row].tolist()], 4))
        rows.rewind([length + count for length, count in zip(before, kept, strict=True)])
        texts = [[*text, *tokens[row, : kept[row]].tolist()] for row, text in enumerate(texts)]
    # A row may go back before what it read in earlier passes, and before its window.
    rows.rewind([13 + 2, 13 + 1])
    texts = [texts[0][: 5 + 2], texts[1][: 13 + 1]]
    tokens = random_ids(2, 3, seed=99)
    output = stream.extend(tokens)
    for row, text in enumerate(texts):
        _close(output.hidden[row], _alone(model, [*text, *tokens[row].tolist()], 3))


@pytest.mark.parametrize(("name", "has_window"), [("llama", False), ("opt", False), ("gemma2", True)])
def test_a_token_of_rows_of_one_length_is_read_like_one_of_a_stream(
    name: str, has_window: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a mask of its own attention would copy the keys and values of every layer."""
    model = tiny_model(name)
    texts = random_ids(2, 13, seed=3).tolist()
    stream = decoding.open_stream(model, input_ids=torch.tensor(texts))
    rows = stream.separate_rows()
    own: list[int] = []
    monkeypatch.setattr(separate_rows, "masks_by_layer", lambda *given: own.append(1) or masks_by_layer(*given))
    for n, kept, masked in ((2, (2, 2), True), (1, (1, 0), False), (1, (1, 1), True)):
        before, tokens = list(rows.lengths), random_ids(2, n, seed=n)
        output = stream.extend(tokens)
        assert bool(own) == (masked or has_window)
        for row, text in enumerate(texts):
            _close(output.hidden[row], _alone(model, [*text, *tokens[row].tolist()], n))
        rows.rewind([length + count for length, count in zip(before, kept, strict=True)])
        texts = [[*text, *tokens[row, : kept[row]].tolist()] for row, text in enumerate(texts)]
        own.clear()


@pytest.mark.parametrize("name", SHARING)
def test_joined_rows_are_continued_as_if_they_had_never_been_apart(name: str) -> None:
    model = tiny_model(name)
    stream, _texts = _open(model)
    rows = stream.separate_rows()
    tokens = random_ids(2, 6, seed=5)
    stream.extend(tokens[:, :4])
    rows.rewind([13 + 1, 13 + 4])
    more = torch.stack([tokens[0, 1:6], torch.cat([tokens[1, 4:6], tokens[1, :3]])])
    stream.extend(more)
    rows.rewind([13 + 6, 13 + 6])
    cache = stream.close()
    assert {type(layer).__name__ for layer in cache.layers} <= {"GrowingLayer", "DynamicSlidingWindowLayer"}
    other, _ = _open(model)
    other.extend(tokens)
    expected = other.close()
    for layer, reference in zip(cache.layers, expected.layers, strict=True):
        assert layer.get_seq_length() == reference.get_seq_length() == 19
        for row, first in enumerate((8, 0)):
            slots = slice(max(first - (19 - layer.keys.shape[2]), 0), None)
            _close(layer.keys[row, :, slots], reference.keys[row, :, slots])
            _close(layer.values[row, :, slots], reference.values[row, :, slots])


def test_what_was_not_written_is_never_read() -> None:
    model = tiny_model("llama")
    stream, _texts = _open(model)
    for layer in stream.cache.layers:
        for storage in (layer._keys, layer._values):
            storage[:, :, layer.length :] = torch.nan  # as memory that was used before may hold
    rows = stream.separate_rows()
    tokens = random_ids(2, 5, seed=7)
    stream.extend(tokens)
    rows.rewind([13, 13 + 5])
    output = stream.extend(tokens)
    assert not output.hidden.isnan().any()


def test_a_row_may_read_past_the_end_of_its_text() -> None:
    """GPT-2 has no position behind its context: what would need one is forgotten, and must not fail."""
    model = copy.deepcopy(tiny_model("gpt2"))
    context = model.config.n_positions
    ids = random_ids(1, context - 2, seed=3)
    stream = decoding.open_stream(model, input_ids=ids, past_key_values=DynamicCache(config=model.config))
    stream.generation_config.max_length = context
    rows = stream.separate_rows()
    tokens = random_ids(1, 5, seed=4)
    output = stream.extend(tokens)
    _close(output.hidden[0, :2], _alone(model, [*ids[0].tolist(), *tokens[0, :2].tolist()], 2))
    rows.rewind([context])


@pytest.mark.parametrize("name", ["mamba", "bloom"])
def test_a_model_that_cannot_is_refused(name: str) -> None:
    model = tiny_model(name)
    with pytest.raises(ModelError, match="cannot read drafts"):
        decoding.open_stream(model, input_ids=random_ids(2, 6)).separate_rows()


def test_forked_rows_are_refused() -> None:
    stream = stream_with_way(tiny_model("llama"), "fork", input_ids=random_ids(2, 6))
    with pytest.raises(ModelError, match="cannot read drafts"):
        stream.separate_rows()
