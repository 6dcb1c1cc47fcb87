"""What calls with drafts return beside the tokens and stream, against the same calls without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from drafted_cases import ENDING, NEW, PROMPTS, STRATEGIES, llama, plain, plain_text, with_script
from tiny_models import left_padded, letter_tokenizer, tiny_model, word_tokenizer
from torch import Tensor
from transformers import TextStreamer
from transformers.generation import BaseStreamer

from decoding import FSD


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


def _close(values: Any, expected: Any, rows: list[int]) -> None:
    """Hold values of a step to those without drafts in some rows, at the last token: others may be left out."""
    torch.testing.assert_close(values[rows], expected[rows], atol=2e-4, rtol=1e-3)  # sums in another order


@pytest.mark.parametrize(
    ("name", "rows"), [*((name, 3) for name in [*ENDING, "context-aware", "lol", "window"]), *((n, 1) for n in ENDING)]
)
def test_what_is_returned_beside_the_tokens(name: str, rows: int, model: Any) -> None:
    inputs, strategy = left_padded(PROMPTS[:rows]), STRATEGIES[name]()
    width = inputs["input_ids"].shape[1]
    free = plain_text(name, rows)[:, width:]
    options = {
        "strategy": strategy, "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
        "output_hidden_states": True, "eos_token_id": [int(free[-1, 7])], "pad_token_id": 0,
    }  # fmt: skip
    expected = plain(model, inputs, **options)
    output, _ = with_script(model, expected.sequences, inputs, **options)
    assert torch.equal(output.sequences, expected.sequences)
    new = expected.sequences[:, width:]
    assert len(output.scores) == len(output.logits) == len(output.hidden_states) == new.shape[1]
    ended = (new == int(free[-1, 7])).int().cumsum(1) - (new == int(free[-1, 7])).int() > 0
    for step in range(new.shape[1]):
        going = (~ended[:, step]).nonzero()[:, 0].tolist()
        _close(output.scores[step], expected.scores[step], going)
        _close(output.logits[step], expected.logits[step], going)
        assert len(output.hidden_states[step]) == len(expected.hidden_states[step])
        for states, sought in zip(output.hidden_states[step], expected.hidden_states[step], strict=True):
            assert states.shape == sought.shape
            _close(states[:, -1], sought[:, -1], going)
    cache, sought = output.past_key_values, expected.past_key_values
    assert cache.get_seq_length() == sought.get_seq_length() == expected.sequences.shape[1] - 1
    for layer, sought_layer in zip(cache.layers, sought.layers, strict=True):
        assert type(layer) is type(sought_layer)
        assert layer.keys.shape == sought_layer.keys.shape
        for row in range(rows):
            first = width - len(PROMPTS[row])
            last = width + int((~ended[row]).sum()) - 1
            for entries in ("keys", "values"):
                _close(getattr(layer, entries)[row, :, first:last], getattr(sought_layer, entries)[row, :, first:last],
                       slice(None))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "of_call"),
    [*((name, "llama") for name in ENDING), ("greedy", "mistral-sliding"), ("contrastive-search", "mistral-sliding")],
)
def test_a_returned_cache_is_continued(name: str, of_call: str) -> None:
    continued_model, strategy = tiny_model(of_call), STRATEGIES[name]()
    inputs = left_padded(PROMPTS[:3])
    whole = plain(continued_model, inputs, strategy=strategy, max_new_tokens=2 * NEW)
    half = whole[:, : inputs["input_ids"].shape[1] + NEW]

    def more(output: Any) -> dict[str, Any]:
        assert torch.equal(output.sequences, half)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1)
        return {"input_ids": output.sequences, "attention_mask": mask, "past_key_values": output.past_key_values}

    def first() -> dict[str, Any]:
        return more(with_script(continued_model, half, inputs, strategy=strategy, return_dict_in_generate=True)[0])

    begun = first()
    copied = copy.deepcopy(begun)  # for transformers' own call: a history of the text is known by the cache itself
    assert torch.equal(plain(continued_model, begun, strategy=strategy), whole)
    tokens, _ = with_script(continued_model, whole, first(), strategy=strategy)
    assert torch.equal(tokens, whole)
    greedy = continued_model.generate(half, attention_mask=more(_fresh(half))["attention_mask"],
                                     max_new_tokens=4, do_sample=False, pad_token_id=0)  # fmt: skip
    continued = continued_model.generate(**copied, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(continued, greedy)


def _fresh(sequences: Tensor) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(sequences=sequences, past_key_values=None)


def test_a_cache_of_the_caller_s_is_left_as_without_drafts(model: Any) -> None:
    from transformers import DynamicCache

    inputs = left_padded(PROMPTS[:3])
    for name in ENDING:
        strategy, caches = STRATEGIES[name](), []
        expected = None
        for with_drafts in (False, True):
            cache = DynamicCache(config=model.config)
            options = {"strategy": strategy, "past_key_values": cache}
            if with_drafts:
                tokens, _ = with_script(model, expected, inputs, **options)
                assert torch.equal(tokens, expected)
            else:
                expected = plain(model, inputs, **options)
            caches.append(cache)
        sought_cache, cache = caches
        assert sought_cache.get_seq_length() == cache.get_seq_length() == expected.shape[1] - 1
        for layer, sought in zip(cache.layers, sought_cache.layers, strict=True):
            for row in range(3):
                first = expected.shape[1] - NEW - len(PROMPTS[row])
                _close(layer.values[row, :, first:], sought.values[row, :, first:], slice(None))


class _Steps(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.puts: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.puts.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(
    ("rows", "stop", "names"),
    [
        (3, None, ENDING),
        (3, "eos", ["greedy", "contrastive-search"]),  # rows that have ended are given padding, unless it looks ahead
        (3, "string", ["contrastive-decoding"]),
        (1, None, ["greedy", "contrastive-search"]),
        (1, "eos", ["contrastive-search"]),
        (1, "string", ["contrastive-decoding"]),
    ],
    ids=lambda value: str(value),
)
def test_streams(rows: int, stop: str | None, names: list[str], model: Any) -> None:
    inputs = left_padded(PROMPTS[:rows])
    for name in names:
        strategy = STRATEGIES[name]()
        options: dict[str, Any] = {"strategy": strategy}
        free = plain_text(name, rows)[:, inputs["input_ids"].shape[1] :]
        if stop == "eos":
            options |= {"eos_token_id": free[:, 6].tolist(), "pad_token_id": 0}
        if stop == "string":
            tokenizer = letter_tokenizer()
            options |= {"stop_strings": [tokenizer.decode(free[0, 6:8])], "tokenizer": tokenizer}
        without, streamer = _Steps(), _Steps()
        expected = plain(model, inputs, streamer=without, **options)
        tokens, proposer = with_script(model, expected, inputs, streamer=streamer, **options)
        assert torch.equal(tokens, expected)
        assert streamer.ended == without.ended == 1
        assert torch.equal(streamer.puts[0], inputs["input_ids"])
        if rows > 1:
            assert [put.tolist() for put in streamer.puts] == [put.tolist() for put in without.puts]
            continue
        assert all(put.dim() == 1 for put in streamer.puts[1:])
        assert torch.equal(torch.cat(streamer.puts[1:]), torch.cat(without.puts[1:]))
        runs = [len(put) for put in streamer.puts[2:]]
        assert runs[: len(proposer.taken)] == [count for (count,) in proposer.taken]  # whole runs, as they come


def test_text_of_a_streamer(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, texts = left_padded(PROMPTS[:1]), []
    for options in ({}, {"drafts": "exit:2", "draft_tokens": 4}):
        plain(model, inputs, strategy=FSD(), streamer=TextStreamer(word_tokenizer()), **options)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].count("w") == len(PROMPTS[0]) + NEW
