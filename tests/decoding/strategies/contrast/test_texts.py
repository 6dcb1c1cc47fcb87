"""Texts beside prompts: in every form that callers give them, and refused where they would change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_prompt, tiny_model

import decoding
from decoding import LOL, ContextAware, ContrastiveDecoding, OptionError, Prompt
from decoding.strategies.contrast.amateurs import reader_text, text_reader
from decoding.strategies.contrast.texts import least_rows, texts_of
from decoding.strategies.registry import parse_strategy

BLANKS: list[Any] = ["", " \n", [], (), ["a town", " "], [[7], []], np.array([], dtype=np.int64), torch.zeros(0)]
TAKERS: dict[str, Callable[[Any], Any]] = {
    "context": ContextAware,
    "prompt": Prompt,
    "amateur": lambda text: ContrastiveDecoding(Prompt(text)),
    "amateur of LOL": lambda text: LOL(Prompt(text), [1]),
    "guidance": lambda text: LOL("a", [1], guidance=text),
    "guidance in languages": lambda text: LOL("a", [1], guidance={"en": "Be right.", "de": text}),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("blank", BLANKS, ids=str)
def test_an_empty_text_is_refused_when_the_strategy_is_made(taker: str, blank: Any) -> None:
    with pytest.raises(OptionError, match=r"is empty .* give at least one word or token"):
        TAKERS[taker](blank)


def test_the_row_and_the_language_of_an_empty_text_are_named() -> None:
    with pytest.raises(OptionError, match=r"context of row 1 is empty \(''\)"):
        ContextAware(["a town", ""])
    with pytest.raises(OptionError, match=r"guidance in language 'de' is empty \(' '\)"):
        LOL("a", [1], guidance={"en": "Be right.", "de": " "})
    with pytest.raises(OptionError, match=r"guidance in language 'de': None must be text"):
        LOL("a", [1], guidance={"en": "Be right.", "de": None})


@pytest.mark.parametrize("name", ["contrastive-decoding", "lol:lower_layers=1"])
@pytest.mark.parametrize("amateur", ["", " "])
def test_an_amateur_without_a_name_is_refused(name: str, amateur: str) -> None:
    with pytest.raises(OptionError, match="amateur='': is empty; must be a transformers model, a folder"):
        parse_strategy(name, {"amateur": amateur})


@pytest.mark.parametrize("name", ["contrastive-decoding", "lol:lower_layers=1"])
def test_an_amateurs_prompt_without_text_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="the amateur's prompt is empty"):
        parse_strategy(name, {"amateur": "prompt: "})


def test_a_text_keeps_the_end_of_its_line_and_no_space_around_it() -> None:
    for name, parameter, given in (
        ("contrastive-decoding", "amateur", "prompt: Lie.\n\n "),
        ("context-aware", "context", " Lie.\n\n "),
    ):
        strategy = parse_strategy(name, {parameter: given}).strategy
        text = reader_text(strategy.amateur) if parameter == "amateur" else strategy.context
        assert text == "Lie.\n\n"


def test_a_text_without_a_token_is_refused() -> None:
    def tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": []}

    with pytest.raises(OptionError, match=r"context \('☃'\) has no token of the tokenizer's"):
        text_reader("guided", "☃", tokenizer, 1, "context", "prefix")


@pytest.mark.parametrize("given", [None, 5, 0.5, b"text", {"en": "a"}, [None], torch.empty((), device="meta")], ids=str)
def test_what_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match=r"context: .* must be text, token ids, or one of these a row"):
        ContextAware(given)


def test_texts_are_read_in_every_form() -> None:
    assert texts_of("a town", "text") == (["a town"], False)
    assert texts_of(np.str_("a town"), "text") == (["a town"], False)
    assert texts_of(torch.tensor([3, 4]), "text") == ([[3, 4]], False)
    assert texts_of(np.array([[3, 4], [5, 6]]), "text") == ([[3, 4], [5, 6]], True)
    assert texts_of(["a town", torch.tensor([3])], "text") == (["a town", [3]], True)


def test_the_smallest_batch_has_a_row_for_each_text() -> None:
    assert least_rows("a town", None, [3, 4]) == 1
    assert least_rows(["a", "b"], [[3], [4], [5]], "c") == 6


@pytest.mark.parametrize(
    ("many", "one"),
    [
        (lambda texts: ContrastiveDecoding(Prompt(texts)), lambda text: ContrastiveDecoding(Prompt(text))),
        (lambda texts: LOL(Prompt(texts), [1]), lambda text: LOL(Prompt(text), [1])),
        (lambda texts: LOL(Prompt([9]), [1], texts), lambda text: LOL(Prompt([9]), [1], text)),
        (lambda texts: LOL(Prompt([9]), [1], torch.tensor(texts)), lambda text: LOL(Prompt([9]), [1], text)),
        (lambda texts: LOL(Prompt([9]), [1], {"en": texts, "de": [8]}), lambda text: LOL(Prompt([9]), [1], text)),
        (lambda texts: ContextAware(texts), lambda text: ContextAware(text)),
    ],
    ids=["prompt", "prompt of LOL", "guidance", "tensor", "in languages", "context"],
)
def test_each_row_has_its_own_text(many: Callable[[Any], Any], one: Callable[[Any], Any]) -> None:
    model, texts = tiny_model("llama"), [[5, 6], [7, 31]]
    prompts = torch.tensor([random_prompt(5, seed=1), random_prompt(5, seed=2)])
    together = decoding.generate(model, prompts, strategy=many(texts), max_new_tokens=8)
    for row, text in enumerate(texts):
        alone = decoding.generate(model, prompts[row : row + 1], strategy=one(text), max_new_tokens=8)
        assert together[row].tolist() == alone[0].tolist()
