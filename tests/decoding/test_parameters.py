"""Hyper-parameters as NumPy numbers and tensors: stored as the Python numbers that they stand for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_ids, tiny_model

import decoding
from decoding import FSD, LOL, ContextAware, ContrastiveDecoding, ContrastiveSearch, DoLa, OptionError
from decoding.induce.recipe import Recipe
from decoding.parameters import plain_number, require_choice, require_count, require_number, require_range
from decoding.strategies.baselines import Beam, Nucleus

SAME = {
    "contrastive-search": (
        lambda: ContrastiveSearch(np.float32(0.6), np.int64(3), torch.tensor(8)),
        ContrastiveSearch(0.6, 3, 8),
    ),
    "fsd": (lambda: FSD(torch.tensor(0.6), np.uint8(3), np.array(2), np.float16(0.9)), FSD(0.6, 3, 2, 0.9)),
    "dola-list": (lambda: DoLa([np.int32(0), torch.tensor(2)], np.float64(0.1)), DoLa([0, 2], 0.1)),
    "dola-array": (lambda: DoLa(np.array([0, 2]), per_row=np.bool_(True)), DoLa([0, 2])),
    "dola-tensor": (lambda: DoLa(torch.tensor([0, 2])), DoLa([0, 2])),
    "lol": (lambda: LOL("a", np.array([0.5, 0.75]), alpha=np.float32(0.2)), LOL("a", [0.5, 0.75], alpha=0.2)),
    "lol-one-layer": (lambda: LOL("a", np.float32(0.3)), LOL("a", 0.3)),
    "contrastive-decoding": (
        lambda: ContrastiveDecoding("a", beta=np.float32(0.7)), ContrastiveDecoding("a", beta=0.7)
    ),
    "context-aware": (lambda: ContextAware("a", np.float32(0.3)), ContextAware("a", 0.3)),
    "nucleus": (lambda: Nucleus(np.float32(0.7), top_p=np.float64(0.9)), Nucleus(0.7, top_p=0.9)),
    "beam": (lambda: Beam(np.int64(5)), Beam(5)),
    "recipe": (lambda: Recipe(np.float32(1e-3), np.int64(8)), Recipe(1e-3, 8)),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_numpy_numbers_and_tensors_are_stored_as_python_numbers(case: str) -> None:
    """Equality, hash, text and JSON are those of the plain numbers."""
    make, plain = SAME[case]
    made = make()
    assert (made, hash(made), repr(made)) == (plain, hash(plain), repr(plain))
    assert json.dumps(vars(made)) == json.dumps(vars(plain))


def test_low_precision_is_the_shortest_decimal_that_rounds_to_it() -> None:
    """A number written as 0.6 stays 0.6; infinities, text and arrays with dimensions are what they were."""
    for given in (np.float32(0.6), np.float16(0.6), torch.tensor(0.6), torch.tensor(0.6, dtype=torch.float16)):
        assert plain_number(given) == 0.6
    assert plain_number(np.float32("inf")) == float("inf")
    assert plain_number(torch.tensor(0.6, dtype=torch.float64)) == 0.6
    assert plain_number("0.6") == "0.6"
    one = np.array([0.6])
    assert plain_number(one) is one
    without_data = torch.empty((), device="meta")
    assert plain_number(without_data) is without_data


@pytest.mark.parametrize(
    "value", ["3", True, None, np.bool_(True), np.array([3]), torch.tensor([3]), np.float32("nan"), [3], 3j]
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    """Text, truth values, arrays with dimensions, NaN."""
    with pytest.raises(OptionError, match=r"x=.*must be a number"):
        require_range("x", value, 0, 9)
    with pytest.raises(OptionError, match=r"x=.*must be a number"):
        require_number("x", value, 0)
    with pytest.raises(OptionError, match=r"x=.*must be a whole number"):
        require_count("x", value, 0)
    with pytest.raises(OptionError, match="must be a or b"):
        require_choice("x", value, ("a", "b"))


def test_a_count_with_a_fraction_is_refused() -> None:
    """``np.float32(3)`` is no count, as 3.0 is none."""
    for value in (3.0, np.float32(3), torch.tensor(3.0)):
        with pytest.raises(OptionError, match="whole number"):
            ContrastiveSearch(top_k=value)


@pytest.mark.parametrize("template", [None, 3, "no place", b"{question}"])
def test_recipes_refuse_what_is_no_template(template: Any) -> None:
    """One line, whatever it is."""
    with pytest.raises(OptionError, match="template="):
        Recipe(template=template)


def test_numbers_of_a_call_may_be_numpy_too() -> None:
    """The arguments of ``generate`` and ``open_stream``, and token ids of a context."""
    model, ids = tiny_model("llama"), random_ids(1, 7)
    plain = decoding.generate(model, ids, penalty_alpha=0.6, top_k=3, max_new_tokens=4, do_sample=False)
    given = decoding.generate(
        model, ids, penalty_alpha=np.float32(0.6), top_k=np.int64(3), max_new_tokens=np.int64(4), do_sample=False,
        prefill_chunk_size=np.int64(3),
    )  # fmt: skip
    assert torch.equal(plain, given)
    with pytest.raises(OptionError, match="top_k='3'"):
        decoding.generate(model, ids, penalty_alpha=0.6, top_k="3", max_new_tokens=2)
    streams = [decoding.open_stream(model, exits=exits, input_ids=ids) for exits in ([1, 2], np.array([1, 2]))]
    assert torch.equal(*(stream.logits(stream.prompt) for stream in streams))
    for exits in ("12", 1, [1.5], ["1"]):
        with pytest.raises(OptionError, match="exits="):
            decoding.open_stream(model, exits=exits, input_ids=ids)
    contexts = ([5, 6], np.array([5, 6]), [np.int64(5), np.int64(6)], torch.tensor([5, 6]), np.array([[5, 6]]))
    scores = [decoding.score(model, [1, 3], [[4, 9]], ContextAware(context))[0] for context in contexts]
    assert all(torch.equal(scores[0], other) for other in scores[1:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DoLa(final_norm="no"), "final_norm='no': must be True or False"),
        (lambda: DoLa(per_row=1), "per_row=1: must be True or False"),
        (lambda: LOL("a", [1], final_norm=None), "final_norm=None: must be True or False"),
        (lambda: LOL("a", [1], language=3), "language=3: must be a language of the guidance"),
        (lambda: ContextAware([3], 1e300), r"alpha=1e\+300: .* at most 3.40282e\+38, the largest of float32"),
        (lambda: LOL("a", [1], amateur_weight=10**400), "amateur_weight=1000.*…: must be a number"),
        (lambda: ContrastiveSearch(top_k=object()), "top_k=<object object at .*: must be a whole number"),
    ],
)
def test_values_that_ran_silently_or_failed_late_are_refused(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message) as raised:
        make()
    assert len(str(raised.value)) < 200


def test_a_model_in_place_of_a_number_is_quoted_in_one_short_line() -> None:
    with pytest.raises(OptionError, match=r"^alpha=LlamaForCausalLM\( \(model\).*…: must be a number") as raised:
        DoLa(alpha=tiny_model("llama"))  # type: ignore[arg-type]
    assert len(str(raised.value)) < 150
