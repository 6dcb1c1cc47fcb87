"""What weighted contrasts and their readers are given: terms as text, and one line for what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_prompt, tiny_model, word_tokenizer

import decoding
from decoding import (
    AdaptiveContext,
    ContrastiveDecoding,
    Documents,
    Guidance,
    InputError,
    LastToken,
    MaskedHeads,
    ModelError,
    OptionError,
    OtherPrompt,
    Prompt,
    ProxyTuning,
    SafeDecoding,
    Self,
    SkippedLayers,
    WeightedContrast,
)
from decoding.strategies.contrast.reader_kinds import as_kind
from decoding.strategies.contrast.terms import as_terms

PROMPT = random_prompt(6, seed=1)
TWO = [("expert", 1.5), (LastToken(), -0.5)]


@pytest.mark.parametrize(
    "reader",
    [
        Prompt("Lie, and lie."), OtherPrompt("What is 3*4 - or 5?"), LastToken(), Self(skip_layers=[1, 2, 5]),
        Self(skip_layers=range(8, 12), dropout=0.25, seed=4), Self(mask_heads={5: [0, 3], 7: [1]}), Self(expert_rank=2),
        Self(quantised="int4"),
    ],
    ids=str,
)  # fmt: skip
def test_a_reader_is_the_same_as_text_and_in_a_sum(reader: Any) -> None:
    assert as_kind(str(reader)) == reader
    terms = as_terms([("expert", 2), (reader, -0.125), ("./folder", 1e-7)])
    assert str(terms) == f"2*expert - 0.125*{reader} + 1e-07*./folder"
    assert as_terms(str(terms)) == terms


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("1*expert", [("expert", 1.0)]),
        ("-1*expert + .5 * last-token", [("expert", -1.0), (LastToken(), 0.5)]),
        ("  2*expert  -  1.25*amateur ", [("expert", 2.0), ("amateur", -1.25)]),
        ("1*self - 1*self:skip_layers=8-10+12", [("expert", 1.0), (Self(skip_layers=[8, 9, 10, 12]), -1.0)]),
        ("1*expert - 1*instead:2*3 is 6\n", [("expert", 1.0), (OtherPrompt("2*3 is 6\n"), -1.0)]),
    ],
)
def test_terms_as_text(text: str, pairs: list[tuple[Any, float]]) -> None:
    assert as_terms(text) == as_terms(pairs)


def _decoded(strategy: Any, **options: Any) -> Any:
    model = options.pop("model", None) or tiny_model("llama")
    return decoding.generate(model, torch.tensor([PROMPT]), strategy=strategy, max_new_tokens=3, **options)


def _wide() -> Any:
    """A model of another vocabulary."""
    model = tiny_model("llama", seed=3)
    model.resize_token_embeddings(400)
    return model


MADE: dict[str, tuple[Callable[[], Any], str]] = {
    "weights are numbers": (
        lambda: WeightedContrast([("expert", 1), ("a", float("nan"))]),
        "terms: the weight of reader 2 is nan; must be a finite number",
    ),
    "weights are not words": (lambda: WeightedContrast([("expert", "much")]), "the weight of reader 1 is 'much'"),
    "weights are finite": (lambda: WeightedContrast([("expert", float("inf"))]), "must be a finite number"),
    "terms are pairs": (lambda: WeightedContrast(["expert"]), "'expert' is no pair of a reader and a weight"),
    "terms are there": (lambda: WeightedContrast([]), r"terms=\[\]: must be readers with weights, such as"),
    "terms have weights": (lambda: WeightedContrast("expert - amateur"), "terms='expert - amateur': must be readers"),
    "terms begin the text": (lambda: WeightedContrast("a 1*expert"), "terms='a 1.expert': must be readers"),
    "a reader is named": (lambda: WeightedContrast([(" ", 1)]), "reader 1=' ': is empty; must be a transformers model"),
    "a reader once": (lambda: WeightedContrast([("expert", 1), ("self", 1)]), "'expert' is there twice; give each"),
    "a role once": (lambda: WeightedContrast([("a", 1, "x"), ("b", 1, "x")]), "'x' is there twice"),
    "a role is a name": (lambda: WeightedContrast([("a", 1, 3)]), "the role of reader 1 is 3; must be a name"),
    "the anchor is a reader": (
        lambda: WeightedContrast(TWO, plausible="amateur"),
        "plausible='amateur': no reader has this role; expected one of expert, reader 2",
    ),
    "the anchor is a name": (lambda: WeightedContrast(TWO, plausible=2), "plausible=2: no reader has this role"),
    "the form": (lambda: WeightedContrast(TWO, form="probs"), "form='probs': must be logits or log_probs"),
    "alpha": (lambda: WeightedContrast(TWO, alpha=2), "alpha=2: must be a number from 0 to 1"),
    "the strength": (lambda: WeightedContrast(TWO, weight_by="kl"), r"weight_by='kl': must be jsd .*, entropy"),
    "the gate": (lambda: WeightedContrast(TWO, when="first"), "when='first': must be a condition such as 'first 2'"),
    "the gate's measure": (lambda: WeightedContrast(TWO, when="surprise > 2"), "when='surprise > 2': must be"),
    "the gate's sign": (lambda: WeightedContrast(TWO, when="entropy = 2"), "when='entropy = 2': must be"),
    "a divergence has two sides": (
        lambda: WeightedContrast([("expert", 1), ("a", 0)], weight_by="jsd"),
        "a divergence needs a reader beside the anchor with a weight other than 0",
    ),
    "the same of a gate": (lambda: WeightedContrast([("expert", 1)], when="divergence > 1"), "a divergence needs"),
    "the scale": (lambda: Guidance([5], scale=float("nan")), "scale=nan: must be"),
    "the scale's sign": (lambda: Guidance([5], scale=-1), "scale=-1: must be"),
    "a negative prompt": (lambda: Guidance(""), "negative is empty"),
    "a negative prompt's tokens": (lambda: Guidance([]), "negative"),
    "a negative prompt is no folder": (lambda: Guidance(Path("model")), "negative: .* must be text, token ids, or"),
    "a negative prompt's kind": (lambda: Guidance(3.5), "negative: 3.5 must be text, token ids, or one of these a row"),
    "a tuned model": (lambda: ProxyTuning(" ", "b"), "tuned=' ': is empty; must be a transformers model"),
    "an untuned model": (lambda: ProxyTuning("a", ""), "untuned='': is empty"),
    "the weight of tuning": (lambda: ProxyTuning("a", "b", weight=-1), "weight=-1: must be"),
    "the floor": (lambda: AdaptiveContext([5], floor=1.5), "floor=1.5: must be a number from 0 to 1"),
    "a context": (lambda: AdaptiveContext(" "), "context is empty"),
    "documents": (lambda: Documents([]), r"documents=\[\]: must be a sequence of texts or of token ids"),
    "every document": (lambda: Documents(["a", " "]), "document 2 is empty"),
    "every document of text": (lambda: Documents("a;;b"), "document 2 is empty"),
    "documents of rows": (lambda: Documents([["a", "b"]]), "document 1: is a sequence of texts; each document is one"),
    "documents of two forms": (lambda: Documents(["a", [5]]), "some are text and some token ids"),
    "a document's weight": (lambda: Documents([[5]], none_weight=-1), "none_weight=-1"),
    "the safe model": (lambda: SafeDecoding(""), "safe='': is empty"),
    "first tokens": (lambda: SafeDecoding("a", first_tokens=-1), "first_tokens=-1: must be a whole number from 0"),
    "common tokens": (lambda: SafeDecoding("a", common_tokens=0), "common_tokens=0: must be a whole number from 1"),
    "no layer": (lambda: SkippedLayers([]), "layers: is empty and would skip nothing"),
    "no head": (lambda: MaskedHeads({}), "heads={}: must name at least one head"),
    "heads": (lambda: MaskedHeads("5"), r"heads='5': must be layers and heads such as 5.0\+5.3"),
    "heads by number": (lambda: MaskedHeads([5]), "must be a mapping from layers to lists of heads"),
    "an option of a degraded self": (
        lambda: ContrastiveDecoding("self:skip=3"),
        "self:skip=3: 'skip=3' is none of its options; did you mean skip_layers",
    ),
    "a value of a degraded self": (
        lambda: ContrastiveDecoding("self:skip_layers=a"),
        "self:skip_layers=a: 'skip_layers=a' cannot be read; expected for instance self:skip_layers=8-11",
    ),
    "an empty prompt instead": (lambda: ContrastiveDecoding("instead:"), "the other prompt is empty"),
}


@pytest.mark.parametrize("case", MADE)
def test_a_mistake_is_one_line_as_the_strategy_is_made(case: str) -> None:
    make, message = MADE[case]
    with pytest.raises(OptionError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


CALLED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "another vocabulary": (
        lambda: _decoded(WeightedContrast([("expert", 1), (_wide(), -1, "wide one")])),
        ModelError, "wide one: its vocabulary has 400 tokens and the expert's 120, which is more than padding",
    ),
    "another vocabulary of the tuned": (
        lambda: _decoded(ProxyTuning(_wide(), LastToken())), ModelError, "tuned model: its vocabulary has 400 tokens"
    ),
    "another vocabulary of the safe": (
        lambda: _decoded(SafeDecoding(_wide())), ModelError, "safe model: its vocabulary has 400 tokens"
    ),
    "a negative prompt past the context": (
        lambda: _decoded(Guidance([5] * 130)),
        InputError, "the negative reader's prompt has 130 tokens, which with 3 new ones is more than its context of",
    ),
    "a token of no vocabulary": (
        lambda: _decoded(Guidance([5, 999])), InputError, "the negative reader's prompt has token 999, which is none of"
    ),
    "documents past the context": (
        lambda: _decoded(Documents([[5] * 70, [6] * 70])),
        InputError, "the expert with all documents's prompt has 146 tokens",
    ),
    "texts without a tokenizer": (
        lambda: _decoded(Guidance("dull")), OptionError, "negative reader's prompt is text: pass tokenizer="
    ),
    "documents without a tokenizer": (lambda: _decoded(Documents("a;b")), OptionError, "documents is text: pass"),
    "another number of rows": (
        lambda: _decoded(Guidance([[5], [6]])), OptionError, "negative reader's prompt: 2 texts for 1 rows"
    ),
    "no reader": (
        lambda: _decoded(WeightedContrast([("expert", 1), (5, -1)])), OptionError, "reader 2=int: must be a"
    ),
    "a missing folder": (
        lambda: _decoded(ProxyTuning("./none", LastToken())), ModelError, "tuned model ./none: there is no such folder"
    ),
    "the model itself": (
        lambda: (lambda model: _decoded(ProxyTuning(model, LastToken()), model=model))(tiny_model("llama")),
        OptionError, "tuned model: is the generating model itself",
    ),
    "a strength of another shape": (
        lambda: _decoded(WeightedContrast(TWO, weight_by=lambda logits: logits["expert"])),
        OptionError, r"what weight_by returned has shape \(1, 120\); must be a tensor \(1,\), a value for each",
    ),
    "a strength that is no tensor": (
        lambda: _decoded(WeightedContrast(TWO, weight_by=lambda logits: 0.5)),
        OptionError, r"what weight_by returned is 0.5; must be a tensor \(1,\)",
    ),
    "a gate that is no tensor": (
        lambda: _decoded(WeightedContrast(TWO, when=lambda logits, new: True)),
        OptionError, r"what when returned is True; must be a tensor \(1,\)",
    ),
    "a strength that is no number": (
        lambda: _decoded(WeightedContrast(TWO, weight_by=lambda logits: logits["expert"][:, 0] * float("nan"))),
        OptionError, "what weight_by returned has nan; must be finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLED)
def test_a_mistake_is_one_line_as_a_call_begins(case: str) -> None:
    call, error, message = CALLED[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_text_of_a_negative_prompt_has_the_special_tokens_of_a_prompt() -> None:
    """It stands in place of the row's prompt, where a context stands before it."""
    tokenizer, model = word_tokenizer(), tiny_model("llama")
    tokenizer.bos_token = "w1"
    from tokenizers.processors import TemplateProcessing

    tokenizer._tokenizer.post_processor = TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    assert tokenizer("w9 w8")["input_ids"] == [1, 9, 8]
    (_, reader) = Guidance("w9 w8", tokenizer=tokenizer).readers(model, 2)
    assert reader.prompt == [[1, 9, 8]] * 2
    (_, reader) = Guidance(Prompt("w9 w8"), tokenizer=tokenizer).readers(model, 2)
    assert (reader.prompt, reader.prefix) == (None, [[9, 8]] * 2)
    assert Guidance("w9 w8").with_tokenizer(tokenizer).readers(model, 1)[1].prompt == [[1, 9, 8]]
