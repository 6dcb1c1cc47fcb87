"""Readers that only the first tokens need read no more after them, as rows of a shared pass too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from embedded_batches import with_class_attributes
from tiny_models import left_padded, random_ids, random_prompt, sharper_model
from tiny_strategies import adapted
from transformers import LogitsProcessorList

import decoding
from decoding import LastToken, Prompt, SafeDecoding, Self, WeightedContrast
from decoding.strategies.contrast.readers import Reader
from decoding.stream.prepare import prepare_inputs

NEW = 9
PROMPTS = [random_prompt(4, seed=1), random_prompt(7, seed=2)]


@contextlib.contextmanager
def rows_read(model: Any) -> Iterator[list[int]]:
    """The rows of each forward pass of a model's decoder."""
    rows: list[int] = []

    def read(_decoder: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows.append(len(named["input_ids"] if "input_ids" in named else given[0]))

    handle = model.get_decoder().register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def same_call(
    model: Any, inputs: Any, strategy: Any, *, returns_cache: bool = True, **options: Any
) -> tuple[list[int], list[int]]:
    """Check that readers that end change no token and no returned cache; the rows of passes with them and without.

    A cache with windows that is returned shares no pass.
    """
    options = {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0, "do_sample": False, **options}
    decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=1)  # the checks of a model come first
    found, counted = [], []
    for form in (strategy, with_class_attributes(strategy, lazy=False)):
        torch.manual_seed(1)
        with rows_read(model) as rows:
            output = decoding.generate(model, **inputs, strategy=form, return_dict_in_generate=returns_cache, **options)
        found.append(output)
        counted.append(rows)
    if not returns_cache:
        assert torch.equal(*found)
        return counted[0], counted[1]
    ended, never = found
    assert torch.equal(ended.sequences, never.sequences)
    for layer, right in zip(ended.past_key_values.layers, never.past_key_values.layers, strict=True):
        torch.testing.assert_close(layer.keys, right.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.values, right.values, atol=1e-4, rtol=1e-4)
    return counted[0], counted[1]


LASTING = "two, of which the anchor lasts"
FIRST = {
    "prompt": lambda: WeightedContrast([("expert", 2.0), (Prompt([9, 40, 17]), -1.0)], alpha=None, when="first 3"),
    "sampled": lambda: WeightedContrast([("expert", 2.0), (LastToken(), -1.0)], "log_probs", when="first 3"),
    LASTING: lambda: WeightedContrast(
        [("expert", -0.5), (Self(skip_layers=[1]), -0.4), (Prompt([9, 40]), 1.9, "prompted")], alpha=0.05,
        plausible="prompted", when="first 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "case"), [("llama", "prompt"), ("gpt2", "sampled"), ("llama", LASTING), ("mistral-sliding", LASTING)]
)
def test_rows_of_a_shared_pass_end(name: str, case: str) -> None:
    """The first of three contrasted tokens comes after the prompt, so two passes more have the rows of all readers."""
    strategy = FIRST[case]()
    readers, lasting = len(strategy.terms.terms), 2 if case == LASTING else 1
    ended, never = same_call(
        sharper_model(name), left_padded(PROMPTS), strategy, do_sample=case == "sampled",
        returns_cache=name != "mistral-sliding",
    )  # fmt: skip
    assert never == [2 * readers] * NEW
    assert ended == [2 * readers] * 3 + [2 * lasting] * (NEW - 3)


def test_rows_with_an_adapter_end() -> None:
    model = adapted(sharper_model("llama"))
    ended, never = same_call(model, left_padded(PROMPTS), SafeDecoding("liar", first_tokens=2, common_tokens=20))
    assert never == [4] * NEW
    assert ended == [4] * 2 + [2] * (NEW - 2)


def test_rows_of_an_encoder_decoder_end() -> None:
    strategy = WeightedContrast([("expert", 2.0), (Self(skip_layers=[0]), -1.0)], when="first 2")
    ended, never = same_call(sharper_model("bart"), {"input_ids": random_ids(2, 6)}, strategy, returns_cache=False)
    assert never == [4] * NEW
    assert ended == [4] * 2 + [2] * (NEW - 2)


def test_no_token_is_contrasted_and_none_is_read_beside_the_prompt() -> None:
    strategy = WeightedContrast([("expert", 2.0), (Prompt([9, 40, 17]), -1.0)], when="first 0")
    assert same_call(sharper_model("llama"), left_padded(PROMPTS), strategy)[0] == [4] + [2] * (NEW - 1)


def test_a_reader_that_exits_at_layers_of_its_own_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = FIRST["prompt"]()
    made = type(strategy).readers

    def exiting(self: Any, model: Any, rows: int) -> list[Reader]:
        expert, other = made(self, model, rows)
        return [expert, Reader(other.role, prefix=other.prefix, exits=(1,))]

    monkeypatch.setattr(WeightedContrast, "readers", exiting)
    assert same_call(sharper_model("llama"), left_padded(PROMPTS), strategy)[0] == [4] * NEW


def test_captured_steps_keep_their_rows() -> None:
    """A static layout has a number of rows; on a CPU its steps run as they are."""
    model, inputs, strategy = sharper_model("llama"), left_padded(PROMPTS), FIRST["prompt"]()
    options: dict[str, Any] = {"strategy": strategy, "max_new_tokens": NEW, "eos_token_id": None}
    plain = decoding.generate(model, **inputs, **options)
    assert torch.equal(plain, decoding.generate(model, **inputs, **options, compile=True))


def test_rows_are_put_in_another_order_after_some_have_ended() -> None:
    model, strategy = sharper_model("llama"), FIRST[LASTING]()
    prepared, kwargs, config = prepare_inputs(model, **left_padded(PROMPTS))
    config.max_length = prepared.shape[1] + NEW
    forms = (strategy, with_class_attributes(strategy, lazy=False))
    sessions = [form.session(model, prepared, dict(kwargs, past_key_values=None), config) for form in forms]
    ids = prepared
    for step in range(6):
        ended, never = (session.scores(ids, LogitsProcessorList()) for session in sessions)
        torch.testing.assert_close(ended, never, atol=1e-4, rtol=1e-4)
        ids = torch.cat([ids, never.argmax(-1, keepdim=True)], dim=1)
        for session in sessions:
            session.advance(ids[:, -1])
        if step == 3:
            ids = ids.flip(0)
            for session in sessions:
                session.reorder(torch.tensor([1, 0]))
